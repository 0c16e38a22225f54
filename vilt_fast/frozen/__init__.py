"""Inference without modules: batches planned on the host, run in the shape of buckets, replayed as CUDA graphs."""
