"""The networks whose weights are in results/weights: `Net` (`s5`) and the best network of each budget."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from helpers import build
from s5.analysis.inspection import count_parameters
from s5.experiments.claims import CLAIMS, KNOWN, find_variant
from s5.networks.grammar import NetworkError
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
    """The name or line of the network that a weights file says it is of; "s5" if it says none.

    Raises ValueError if it is one of user code, of which the file has only the name.
    """
    try:
        with safe_open(weights, "pt") as file:
            training = json.loads((file.metadata() or {}).get("training", "{}"))
    except (TypeError, OSError, SafetensorError):  # without a file, or for a damaged one: `load_trained` reports it
        return "s5"
    name = training.get("variant", "s5")
    try:
        return find_variant(name).name
    except NetworkError as error:
        raise ValueError(f"{weights} has the weights of {name}: name that network, too, as FILE.py:NAME") from error


def load_trained(name: str = "s5", weights: str | Path | None = None) -> nn.Module:
    """The network `name` with its committed weights, or any that `find_variant` knows with `weights`.

    It is in evaluation mode, takes normalised images, float (N, 1, 28, 28), and returns logits (N, 10). Raises
    ValueError for an unknown name and CheckpointError if the weights are missing, damaged or of another network.
    """
    if not weights and name not in CLAIMS:
        names = ", ".join(trained_networks())
        raise ValueError(f"there is no trained network {name!r}; there are {names}, and others with their weights")
    try:
        return load_weights(build(find_variant(name).build), weights or weights_file(name)).eval()
    except CheckpointError as error:
        raise CheckpointError(f"network {name!r}: {error}") from error
