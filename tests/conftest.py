"""Data that several test files use."""

from dataclasses import replace

import pytest

from training.mnist import load_sample


@pytest.fixture(scope="session")
def sample():
    return load_sample()


@pytest.fixture(scope="session")
def small(sample):
    """600 training and 200 test images: an epoch takes a fraction of a second."""
    return replace(
        sample,
        train_images=sample.train_images[:600],
        train_labels=sample.train_labels[:600],
        eval_images=sample.eval_images[:200],
        eval_labels=sample.eval_labels[:200],
    )
