"""python -m methods.full_precision fit --config methods/full_precision/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.full_precision import FullPrecision

if __name__ == "__main__":
    run_cli(FullPrecision, errors=(DataError,))
