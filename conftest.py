"""Tests and notebooks run on the small sample: no network, and the same results everywhere."""

import os
import signal

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ["MNIST_SMOKE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: several threads in each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class NotebookScheduling(LoadScopeScheduling):
    """The cells of a notebook run in one process and in order; every other test in whichever process is free."""

    def _split_scope(self, nodeid):
        return nodeid.partition("::")[0] if ".ipynb::" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    return NotebookScheduling(config, log)


@pytest.fixture
def interruptible():
    """Enable Ctrl-C in this process and its children: a shell may have started pytest with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
