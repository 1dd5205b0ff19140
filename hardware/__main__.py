"""python -m hardware --model mobilenet_v2 --bits 4/4 --target bismo-edge"""

import sys

from common.command_line import guarded
from hardware.cli import main

if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
