"""python -m methods.inq fit --config methods/inq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.inq import INQ

if __name__ == "__main__":
    run_cli(INQ, errors=(DataError,))
