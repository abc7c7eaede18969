"""`python -m transformers_upv2.cli` is `upv2`."""

import sys

from transformers_upv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
