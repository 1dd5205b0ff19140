"""python -m methods.ttq fit --config methods/ttq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.ttq import TTQ

if __name__ == "__main__":
    run_cli(TTQ, errors=(DataError,))
