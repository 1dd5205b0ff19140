"""Example of a paper folder (README.md): copy it, rename it, replace the method."""

from methods._template.module import GridPull

KIND = "trainer"
METHOD = GridPull

__all__ = ["KIND", "METHOD", "GridPull"]
