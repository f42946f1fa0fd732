"""``python -m evit_mm`` is the command ``evit-mm``."""

import sys

from .cli.main import main

if __name__ == '__main__':
    sys.exit(main())
