"""python -m methods.qat_int8 fit --config methods/qat_int8/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.qat_int8 import QATInt8

if __name__ == "__main__":
    run_cli(QATInt8, errors=(DataError,))
