"""`python -m hf_segkd COMMAND`."""

import sys

from hf_segkd.commands import main

if __name__ == "__main__":
    sys.exit(main())
