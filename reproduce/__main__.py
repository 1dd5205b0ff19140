"""python -m reproduce run|tables|evaluate|render|compare|bench|plots ..."""

import sys

from reproduce.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
