"""Triton kernels, one file per operation; imported as vilt_fast.kernels."""
