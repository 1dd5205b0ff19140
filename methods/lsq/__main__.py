"""python -m methods.lsq fit --config methods/lsq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.lsq import LSQ

if __name__ == "__main__":
    run_cli(LSQ, errors=(DataError,))
