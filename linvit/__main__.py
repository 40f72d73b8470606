"""``python -m linvit COMMAND ...``, where no ``linvit`` is on the path."""

import sys

from linvit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
