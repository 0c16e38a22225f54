"""What the subcommands of `vilt-fast` do; `vilt_fast.cli` reads the command line and calls them.

Each command takes the parsed arguments and prints its answer. Bad input raises ValueError or OSError, which the command
line turns into one line and exit code 2.
"""
