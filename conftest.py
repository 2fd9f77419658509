"""Tests and the notebooks that they run use the small sample: no network, and the same answer everywhere."""

import os

os.environ["MNIST_SMOKE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
