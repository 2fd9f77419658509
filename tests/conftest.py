"""Data that several test files use."""

import pytest

from s5.training.mnist import load_sample


@pytest.fixture(scope="session")
def sample():
    return load_sample()


@pytest.fixture(scope="session")
def small(sample):
    """600 training and 200 test images: an epoch takes a fraction of a second."""
    return sample.subset(600, 200)
