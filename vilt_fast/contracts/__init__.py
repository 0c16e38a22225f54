"""What kernels and reference agree on: plans, Pillow's rules, checks, names of dtypes. PyTorch and NumPy only."""
