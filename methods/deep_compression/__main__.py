"""python -m methods.deep_compression fit --config methods/deep_compression/configs/digits.yaml"""

from common.training.cli import run_cli
from data import DataError
from methods.deep_compression import DeepCompression

if __name__ == "__main__":
    run_cli(DeepCompression, errors=(DataError,))
