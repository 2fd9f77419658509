"""A short training run for the test that kills it. Imported once, by a fork server, so that a start takes no time."""

from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it at their first use, which takes seconds

import helpers

torch.set_num_threads(1)
SAMPLE = helpers.load_sample()
FEW = replace(
    SAMPLE,
    train_images=SAMPLE.train_images[:300],
    train_labels=SAMPLE.train_labels[:300],
    test_images=SAMPLE.test_images[:100],
    test_labels=SAMPLE.test_labels[:100],
)
RECIPE = helpers.Recipe(epochs=60, batch_size=50)


def train(folder: Path, started: Event) -> None:
    """Start the run in `folder`, or go on with it where a checkpoint is."""
    started.set()
    checkpoint = folder / "checkpoint.pt"
    model = helpers.build()
    helpers.fit(model, FEW, RECIPE, 0, "cpu", checkpoint, resume=checkpoint.exists(), progress=False)
    helpers.save_weights(model, folder / "weights.safetensors")
