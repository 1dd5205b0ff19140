"""python -m methods.pact fit --config methods/pact/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.pact import PACT

if __name__ == "__main__":
    run_cli(PACT, errors=(DataError,))
