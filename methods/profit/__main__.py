"""python -m methods.profit fit --config methods/profit/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.profit import PROFIT

if __name__ == "__main__":
    run_cli(PROFIT, errors=(DataError,))
