"""python -m methods._template fit --config methods/_template/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods._template import GridPull

if __name__ == "__main__":
    run_cli(GridPull, errors=(DataError,))
