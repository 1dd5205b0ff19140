"""Cells of HAWQ-V2's tables that need no training: functions found by their names, of the inputs of the cell."""

from hardware.cells import acr, wcr
from hardware.cells import file_size as size

__all__ = ["acr", "size", "wcr"]
