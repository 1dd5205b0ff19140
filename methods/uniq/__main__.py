"""python -m methods.uniq fit --config methods/uniq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.uniq import UNIQ

if __name__ == "__main__":
    run_cli(UNIQ, errors=(DataError,))
