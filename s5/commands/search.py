"""The command `search`."""

from s5.experiments.search import main

__all__ = ["main"]
