"""python -m methods.binary_connect fit --config methods/binary_connect/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.binary_connect import BinaryConnect

if __name__ == "__main__":
    run_cli(BinaryConnect, errors=(DataError,))
