"""python -m methods.apot fit --config methods/apot/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.apot import APoT

if __name__ == "__main__":
    run_cli(APoT, errors=(DataError,))
