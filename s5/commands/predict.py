"""The command `predict`."""

from s5.inference.predict import main

__all__ = ["main"]
