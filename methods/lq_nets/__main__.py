"""python -m methods.lq_nets fit --config methods/lq_nets/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.lq_nets import LQNets

if __name__ == "__main__":
    run_cli(LQNets, errors=(DataError,))
