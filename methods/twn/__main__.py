"""python -m methods.twn fit --config methods/twn/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.twn import TWN

if __name__ == "__main__":
    run_cli(TWN, errors=(DataError,))
