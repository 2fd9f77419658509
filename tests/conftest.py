"""Data for several files' tests."""

from dataclasses import replace

import pytest

import helpers


@pytest.fixture(scope="session")
def sample():
    return helpers.load_sample()


@pytest.fixture(scope="session")
def small(sample):
    """600 training and 200 test images: an epoch takes a fraction of a second."""
    return replace(
        sample,
        train_images=sample.train_images[:600],
        train_labels=sample.train_labels[:600],
        test_images=sample.test_images[:200],
        test_labels=sample.test_labels[:200],
    )
