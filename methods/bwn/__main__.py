"""python -m methods.bwn fit --config methods/bwn/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.bwn import BWN

if __name__ == "__main__":
    run_cli(BWN, errors=(DataError,))
