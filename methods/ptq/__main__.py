"""python -m methods.ptq calibrate --config methods/ptq/configs/digits.yaml"""

from common.training.calibration import run_calibration_cli
from data import DataError
from methods.ptq import PTQ

if __name__ == "__main__":
    run_calibration_cli(PTQ, errors=(DataError,))
