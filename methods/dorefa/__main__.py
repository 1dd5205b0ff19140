"""python -m methods.dorefa fit --config methods/dorefa/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.dorefa import DoReFa

if __name__ == "__main__":
    run_cli(DoReFa, errors=(DataError,))
