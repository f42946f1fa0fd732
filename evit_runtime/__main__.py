"""``python -m evit_runtime``, the same as the command ``evit-run``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
