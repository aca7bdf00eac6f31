"""Featherweight: a desktop studio for compressing neural networks."""

__version__ = "0.1.0"
