"""Example of a paper folder (README.md): copy it, rename it, replace the method."""

from methods._template.module import GridPull

KIND = "trainer"
METHOD = GridPull
LOWEST_WIDTH = {"bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "GridPull"]
