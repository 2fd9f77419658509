"""The networks whose weights are in results/weights: `Net` (`s5`) and the best network of each budget."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from helpers import build
from s5.analysis.inspection import count_parameters
from s5.experiments.claims import CLAIMS, KNOWN
from s5.training.augmentation import MEAN, STD
from s5.training.checkpoint import CheckpointError, load_weights
from s5.training.files import TRAINED

# What an exported file takes and returns; its metadata and its card say so.
IMAGES = (
    "uint8 (batch, 28, 28): 28×28 pixels, row by row, 0 for the black background to 255 for white ink, as in MNIST; "
    f"the network itself computes (pixel / 255 - {MEAN}) / {STD}"
)
LOGITS = "float32 (batch, 10), one per digit 0 to 9; the largest is the prediction, softmax gives probabilities"


def trained_networks() -> list[str]:
    """The names, the largest network first."""
    names = [name for name in CLAIMS if weights_file(name).is_file()]
    return sorted(names, key=lambda name: -count_parameters(KNOWN[name].build()))


def weights_file(name: str) -> Path:
    """Where the weights of a network are, safetensors."""
    return TRAINED / f"{name}.safetensors"


def network_of(weights: str | Path | None) -> str:
    """The name of the network that a weights file says it is of; "s5" if it names none of them."""
    try:
        with safe_open(weights, "pt") as file:
            training = json.loads((file.metadata() or {}).get("training", "{}"))
    except (TypeError, OSError, SafetensorError):  # without a file, or for a damaged one: `load_trained` reports it
        return "s5"
    name = training.get("variant")
    return name if name in CLAIMS else "s5"


def load_trained(name: str = "s5", weights: str | Path | None = None) -> nn.Module:
    """The network `name` with its committed weights, or with `weights` of the same network, in evaluation mode.

    Takes normalised images, float (N, 1, 28, 28), and returns logits (N, 10). Raises ValueError for an unknown name and
    CheckpointError if the weights are missing, damaged or of another network.
    """
    if name not in CLAIMS:
        raise ValueError(f"there is no trained network {name!r}; there are {', '.join(trained_networks())}")
    try:
        return load_weights(build(KNOWN[name].build), weights or weights_file(name)).eval()
    except CheckpointError as error:
        raise CheckpointError(f"network {name!r}: {error}") from error
