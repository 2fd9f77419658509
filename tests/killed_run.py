"""A short training run for the test that kills it. A fork server imports it once, so that every start is quick."""

from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import torch._dynamo  # imported by optimisers at their first use, which takes seconds

import helpers
from training.checkpoint import save_weights
from training.mnist import load_sample
from training.recipe import Recipe

torch.set_num_threads(1)
FEW = load_sample().subset(300, 50)
RECIPE = Recipe(epochs=60, batch_size=50)


def train(folder: Path, started: Event) -> None:
    """Start the run in `folder`, or resume it if there is a checkpoint."""
    started.set()
    checkpoint = folder / "checkpoint.pt"
    model = helpers.build()
    helpers.fit(model, FEW, RECIPE, device="cpu", checkpoint=checkpoint, resume=checkpoint.exists(), progress=False)
    save_weights(model, folder / "weights.safetensors")
