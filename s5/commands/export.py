"""The command `export`."""

from s5.deployment.export import main

__all__ = ["main"]
