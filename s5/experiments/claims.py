"""Networks of one's own, the claims, and the networks that are trained for speed or as teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from s5.experiments.variants import FINAL, VARIANTS, Variant
from s5.networks import grammar
from s5.networks.grammar import NetworkError
from s5.networks.user_code import Source, check_network, from_file, from_object
from s5.training.recipe import Recipe

MILD = Recipe(rotation=8.0, translation=0.04, scale=0.06, shear=6.0)  # milder augmentation

CANDIDATES = {
    variant.name: variant
    for variant in (
        # A teacher for distillation: 141,946 parameters.
        Variant("wide", "conv 16 32 / 64 64 / 128 gdconv", replace(MILD, epochs=12)),
        # The fewest epochs to a mean of 99.0% and of 99.4% on the test set.
        Variant("to_99_0", "conv 4 8 / 16 32 / 38 gdconv", replace(MILD, epochs=1)),
        Variant(
            "to_99_4",
            "conv 4 8 / 16 32 / 40 gdconv crop 2",
            replace(MILD, epochs=2, learning_rate=0.04, ema_decay=0.995),
        ),
    )
}

# The best network within each budget, as it is evaluated on the test set (see `goals.GOALS`).
CLAIMS = {
    variant.name: variant
    for variant in (
        Variant("below_20k", "separable 16 32 / 48 48 56 / 64 64 gap", Recipe(epochs=16)),
        Variant("below_8k", "separable 8 16 / 28 32 32 / 40 40 gap", replace(MILD, epochs=15, learning_rate=0.03)),
        Variant("below_5k", "separable 6 12 / 20 24 24 / 30 30 gap", replace(MILD, epochs=20, learning_rate=0.03)),
        Variant(
            "below_2k",
            "cellular 13 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2",
            replace(MILD, epochs=100, epochs_without_augmentation=20),
        ),
        Variant(
            "below_1k",
            "shared 8 ×1 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2",
            replace(MILD, epochs=100, learning_rate=0.025, epochs_without_augmentation=20),
        ),
        Variant(
            "below_500",
            "cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2",
            replace(MILD, epochs=80, epochs_without_augmentation=16),
        ),
    )
}

KNOWN = VARIANTS | CANDIDATES | CLAIMS


def find_variant(network: str | Source | Callable[[], nn.Module]) -> Variant:
    """The variant of a name, or a new one, trained by the final recipe, for a network of one's own.

    That is a line of `networks.py`, "FILE.py:NAME", or a class or function. Raises NetworkError if it is none of them,
    or if it does not take images (N, 1, 28, 28) and return logits (N, 10).
    """
    if isinstance(network, str) and network in KNOWN:
        return KNOWN[network]
    if isinstance(network, str) and ".py" not in network:
        if ":" in network:
            raise NetworkError(f"write a network of a file as FILE.py:NAME, not {network!r}")
        try:
            line = str(grammar.parse(network))
        except NetworkError as error:
            raise NetworkError(f"{error}; it is no variant either ({', '.join(KNOWN)})") from error
        return Variant(line, line, FINAL)
    if not isinstance(network, Source):  # one that is passed on to a worker was checked before
        place = f"{network.rpartition(':')[0]}: " if isinstance(network, str) else ""
        network = from_file(network) if isinstance(network, str) else from_object(network)
        check_network(network.build, place + network.function)
    return Variant(network.name, network, FINAL)
