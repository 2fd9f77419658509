"""The command `bench`."""

from s5.benchmarks.bench import main

__all__ = ["main"]
