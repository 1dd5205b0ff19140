"""python -m methods.bnn fit --config methods/bnn/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.bnn import BNN

if __name__ == "__main__":
    run_cli(BNN, errors=(DataError,))
