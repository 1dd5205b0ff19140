"""python -m methods.hmq fit --config methods/hmq/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.hmq import HMQ

if __name__ == "__main__":
    run_cli(HMQ, errors=(DataError,))
