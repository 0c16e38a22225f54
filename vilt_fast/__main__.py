"""`python -m vilt_fast`: the command `vilt-fast`."""

import sys

from vilt_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
