"""python -m methods.uniform fit --config methods/uniform/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.uniform import Uniform

if __name__ == "__main__":
    run_cli(Uniform, errors=(DataError,))
