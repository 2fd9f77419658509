"""The command `compare`."""

from s5.experiments.compare import main

__all__ = ["main"]
