"""transformers' own test classes, run against this package: see `python tests/run_theirs.py --help`."""
