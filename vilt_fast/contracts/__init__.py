"""What kernels and reference agree on: plans, Pillow's rules, checks. PyTorch and NumPy only."""
