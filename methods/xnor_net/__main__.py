"""python -m methods.xnor_net fit --config methods/xnor_net/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.xnor_net import XNORNet

if __name__ == "__main__":
    run_cli(XNORNet, errors=(DataError,))
