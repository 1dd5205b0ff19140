"""python -m methods.tqt fit --config methods/tqt/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.tqt import TQT

if __name__ == "__main__":
    run_cli(TQT, errors=(DataError,))
