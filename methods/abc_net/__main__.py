"""python -m methods.abc_net fit --config methods/abc_net/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.abc_net import ABCNet

if __name__ == "__main__":
    run_cli(ABCNet, errors=(DataError,))
