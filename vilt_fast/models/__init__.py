"""Embeddings + encoder + head -> output dataclass, one file a family."""
