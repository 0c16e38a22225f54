"""Plain PyTorch, one file per operation and whole padded models; imported as vilt_fast.reference."""
