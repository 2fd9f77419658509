"""The claims on the test set, other networks that are trained by name, and the look-up of a network."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from s5.experiments.variants import FINAL, ORIGINAL, VARIANTS, Variant
from s5.networks import grammar
from s5.networks.grammar import NetworkError
from s5.networks.user_code import Source, from_file, from_object
from s5.training.recipe import Recipe

if TYPE_CHECKING:
    from s5.experiments.trial import Trial

BUDGETS = (500, 1_000, 2_000, 5_000, 8_000, 20_000)  # a network has fewer parameters than its budget

MILD = Recipe(rotation=8.0, translation=0.04, scale=0.06, shear=6.0)  # milder augmentation


@dataclass(frozen=True, kw_only=True)
class Claim(Variant):
    """A network and recipe that were chosen on the validation split and then scored on the test set, once per seed.

    Its accuracy is that of the trials of `seeds`, trained in `precision`, and of no others.
    """

    precision: str = "bfloat16"  # or "float32"
    seeds: tuple[int, ...]
    frozen: str  # the date on which network, recipe and seeds were fixed: YYYY-MM-DD
    data: str = "mnist"

    def trials(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of `trials` that count, in the order of the seeds; those that are missing are left out."""
        found = {
            trial.seed: trial
            for trial in trials
            if (trial.network, trial.recipe) == (self.network, self.recipe)
            and (trial.split, trial.data, trial.precision) == ("test", self.data, self.precision)
        }
        return [replace(found[seed], variant=self.name) for seed in self.seeds if seed in found]


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim("s5", "Net", FINAL, precision="float32", seeds=tuple(range(200, 210)), frozen="2026-12-01"),
        Claim(
            "below_20k",
            "separable 16 32 / 48 48 56 / 64 64 gap",
            Recipe(epochs=16),
            precision="float32",
            seeds=tuple(range(200, 210)),
            frozen="2026-12-01",
        ),
        Claim(
            "below_8k",
            "separable 8 16 / 28 32 32 / 40 40 gap deskew 5",
            replace(MILD, epochs=15, learning_rate=0.03),
            precision="float32",
            seeds=tuple(range(200, 210)),
            frozen="2026-12-01",
        ),
        Claim(
            "below_5k",
            "separable 6 12 / 20 24 24 / 30 30 gap deskew 5",
            replace(MILD, epochs=20, learning_rate=0.03),
            precision="float32",
            seeds=tuple(range(200, 210)),
            frozen="2026-12-01",
        ),
        Claim(
            "below_2k",
            "cellular 13 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2",
            replace(MILD, epochs=100, epochs_without_augmentation=20),
            seeds=tuple(range(20, 30)),
            frozen="2026-11-26",
        ),
        Claim(
            "below_1k",
            "shared 8 ×1 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2",
            replace(MILD, epochs=100, learning_rate=0.025, epochs_without_augmentation=20),
            seeds=tuple(range(20, 30)),
            frozen="2026-11-26",
        ),
        Claim(
            "below_500",
            "cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2",
            replace(MILD, epochs=80, epochs_without_augmentation=16),
            seeds=tuple(range(20, 25)),
            frozen="2026-11-26",
        ),
    )
}

# The recipe that this project started from, on the test set: what `s5` is compared with there.
BASELINE = Claim("original", "Net", ORIGINAL, precision="float32", seeds=tuple(range(5)), frozen="2026-11-23")

# The same networks and recipes on Fashion-MNIST, with nothing tuned for it.
FASHION_CLAIMS = {
    name: replace(CLAIMS[name], data="fashion", precision="bfloat16", seeds=(200, 201, 202), frozen="2026-11-30")
    for name in ("s5", "below_20k")
}

OTHERS = {
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

KNOWN = OTHERS | CLAIMS | VARIANTS


def find_variant(network: str | Source | Callable[[], nn.Module]) -> Variant:
    """The variant of a name, or a new one, trained by the final recipe, for a network of the user's.

    That is a line of `grammar.py`, "FILE.py:NAME", or a class or function. Raises NetworkError if it is none of them,
    or if it does not take images (N, 1, 28, 28) and return logits (N, 10).
    """
    if isinstance(network, str) and network in KNOWN:
        return KNOWN[network]
    if isinstance(network, str) and ".py" not in network:
        try:
            line = str(grammar.parse(network))
        except NetworkError as error:
            if " " in network:
                raise
            nearest = " or ".join(difflib.get_close_matches(network, KNOWN, cutoff=0.5))
            advice = f"did you mean {nearest}?" if nearest else "it is no variant either"
            raise NetworkError(f"{error}; {advice}") from error
        return Variant(line, line, FINAL)
    if not isinstance(network, Source):
        network = from_file(network) if isinstance(network, str) else from_object(network)
    return Variant(network.name, network, FINAL)
