"""The ERAv4 MNIST S5 suite: everything but `helpers.py`, `main.py` and the notebooks."""

import os

# OpenMP's threads spin while they wait for each other, by default for milliseconds, and keep the core from a program
# that needs it. The setting is read when torch is loaded: commands import this package first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
