"""The ERAv4 MNIST S5 suite: everything but `helpers.py`, `main.py` and the notebooks."""
