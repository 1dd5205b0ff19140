"""python -m methods.hwgq fit --config methods/hwgq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.hwgq import HWGQ

if __name__ == "__main__":
    run_cli(HWGQ, errors=(DataError,))
