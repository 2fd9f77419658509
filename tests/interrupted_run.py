"""A short training run for the test that kills it. Imported once, by a fork server, so that a start takes no time."""

from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it at their first use, which takes seconds

import helpers
from training.checkpoint import save_weights
from training.mnist import load_sample
from training.recipe import Recipe

torch.set_num_threads(1)
SAMPLE = load_sample()
FEW = replace(
    SAMPLE,
    train_images=SAMPLE.train_images[:300],
    train_labels=SAMPLE.train_labels[:300],
    eval_images=SAMPLE.eval_images[:100],
    eval_labels=SAMPLE.eval_labels[:100],
)
RECIPE = Recipe(epochs=60, batch_size=50)


def train(folder: Path, started: Event) -> None:
    """Start the run in `folder`, or go on with it where a checkpoint is."""
    started.set()
    checkpoint = folder / "checkpoint.pt"
    model = helpers.build()
    helpers.fit(model, FEW, RECIPE, 0, "cpu", checkpoint, resume=checkpoint.exists(), progress=False)
    save_weights(model, folder / "weights.safetensors")
