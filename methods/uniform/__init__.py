"""Uniform quantization at one width: the baseline beside every mixed-precision row."""

from methods.uniform.module import Uniform

KIND = "trainer"
METHOD = Uniform

__all__ = ["KIND", "METHOD", "Uniform"]
