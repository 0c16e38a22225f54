"""Modules that hold parameters under Hugging Face's names and call `vilt_fast.ops`."""
