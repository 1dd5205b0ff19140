"""python -m methods.dnas fit --config methods/dnas/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.dnas import DNAS

if __name__ == "__main__":
    run_cli(DNAS, errors=(DataError,))
