"""python -m methods.wrpn fit --config methods/wrpn/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.wrpn import WRPN

if __name__ == "__main__":
    run_cli(WRPN, errors=(DataError,))
