"""The command `report`."""

from s5.reports.write import main

__all__ = ["main"]
