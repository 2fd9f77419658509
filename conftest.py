"""Tests and the notebooks that they run use the small sample: no network, and the same answer everywhere."""

import os
import signal

import pytest

os.environ["MNIST_SMOKE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture
def interruptible():
    """Ctrl-C works in this process and its children, though a shell may have started pytest with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
