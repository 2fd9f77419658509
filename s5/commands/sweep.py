"""The command `sweep`."""

from s5.experiments.sweep import main

__all__ = ["main"]
