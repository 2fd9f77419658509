"""The networks and recipes that the experiments notebook compares, one short entry each.

A variant states its difference from its parent and, before it was run, what was expected of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from experiments.architectures import (
    BLOCKS,
    HEADS,
    NET,
    flat_head,
    fully_connected,
    plain_cnn,
    plain_conv_block,
    pytorch_example,
    separable_block,
)
from helpers import Net
from training.recipe import NO_AUGMENTATION, Recipe


@dataclass(frozen=True)
class Variant:
    """A network and the recipe that trains it."""

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    change: str = ""  # against the parent
    target: str = ""  # the expectation, written before the run
    parent: str | None = None


# --- Recipes ----------------------------------------------------------------------------------------------------------

FINAL = Recipe()

SGD = replace(
    FINAL, optimizer="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, translation=0.1
)

NOT_AUGMENTED = replace(SGD, **NO_AUGMENTATION)

ORIGINAL = Recipe(  # of the document that the project started from
    epochs=20,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    schedule="step",
    schedule_every="epoch",
    warmup=0.0,
    step_epochs=6,
    step_factor=0.1,
    ema_decay=0.0,
    rotation=15.0,
    translation=0.1,
    scale=0.0,
    shear=0.0,
)

FIRST_EXPERIMENT = replace(  # no augmentation is recorded for it
    ORIGINAL,
    optimizer="adam",
    learning_rate=0.001,
    schedule="cosine",
    label_smoothing=0.1,
    rotation=0.0,
    translation=0.0,
)

PYTORCH_EXAMPLE = replace(  # github.com/pytorch/examples, mnist/main.py, its default settings
    ORIGINAL,
    epochs=14,
    optimizer="adadelta",
    learning_rate=1.0,
    step_epochs=1,
    step_factor=0.7,
    rotation=0.0,
    translation=0.0,
)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "fully_connected",
            fully_connected,
            NOT_AUGMENTED,
            change="The starting point: every pixel is an input, without knowledge of which pixels are neighbours.",
            target="About 97%: what a small fully-connected network is known to reach.",
        ),
        Variant(
            "pytorch_example",
            pytorch_example,
            PYTORCH_EXAMPLE,
            parent="fully_connected",
            change="The network most people meet first: two wide convolutions and two linear layers, 14 epochs.",
            target="99.2% from 66 times the parameters.",
        ),
        Variant(
            "first_experiment",
            # Channels, dropout and the parameter count are recorded, the position of the pooling is not: it is `Net`'s.
            partial(plain_cnn, ((8, 16), (32,), (40,)), dropout=0.05),
            FIRST_EXPERIMENT,
            parent="pytorch_example",
            change="The budget: four convolutions, dropout 0.05, Adam 0.001, label smoothing, cosine.",
            target="99.0%, what was recorded for it.",
        ),
        Variant(
            "original",
            Net,
            ORIGINAL,
            parent="first_experiment",
            change="Net: a fifth convolution, no dropout. SGD 0.05 with steps, rotation ±15°, translation ±10%.",
            target="99.4% in the last epoch, what the original document reports along the way.",
        ),
        Variant(
            "sgd",
            Net,
            SGD,
            parent="original",
            change="The same network: a higher rate with warm-up and linear decay, weight decay, averaged weights.",
            target="A mean above 99.4% in the last epoch.",
        ),
        Variant(
            "no_augmentation",
            Net,
            NOT_AUGMENTED,
            parent="sgd",
            change="The training images as they are.",
            target="Clearly worse: 20 passes over the same images can be learnt by heart.",
        ),
        Variant(
            "no_batchnorm",
            partial(plain_cnn, NET, plain_conv_block),
            SGD,
            parent="sgd",
            change="No BatchNorm; each convolution has a bias instead.",
            target="Worse, if it trains at all at this learning rate.",
        ),
        Variant(
            "flattened",
            partial(plain_cnn, NET, head=flat_head),
            SGD,
            parent="sgd",
            change="No global average pooling: twice the parameters; the linear layer sees every position.",
            target="A little better: where a stroke lies matters, and the budget is broken for it.",
        ),
        Variant(
            "dropout",
            partial(plain_cnn, NET, dropout=0.05),
            SGD,
            parent="sgd",
            change="Dropout 0.05 after each pooling.",
            target="No difference: a network this small, trained with augmentation, hardly overfits.",
        ),
        Variant(
            "separable",
            partial(plain_cnn, ((16, 32), (64, 72), (96,)), separable_block),
            SGD,
            parent="sgd",
            change="Depthwise-separable convolutions: more channels for the same budget.",
            target="Equal or better accuracy from the same budget, for more multiply-adds.",
        ),
        Variant(
            "budget_8k",
            partial(plain_cnn, ((4, 8), (12, 18), (24,))),
            SGD,
            parent="sgd",
            change="Narrower everywhere: fewer than 8,000 parameters.",
            target="About 99.3%.",
        ),
        Variant(
            "budget_5k",
            partial(plain_cnn, ((4, 8), (10, 14), (18,))),
            SGD,
            parent="budget_8k",
            change="Fewer than 5,000 parameters.",
            target="About 99.2%.",
        ),
        Variant(
            "budget_2k",
            partial(plain_cnn, ((4, 5), (6, 8), (11,))),
            SGD,
            parent="budget_5k",
            change="Fewer than 2,000 parameters.",
            target="About 98.8%.",
        ),
        Variant(
            "budget_1k",
            partial(plain_cnn, ((3, 3), (4, 6), (7,))),
            SGD,
            parent="budget_2k",
            change="Fewer than 1,000 parameters.",
            target="About 98%.",
        ),
        Variant(
            "s5",
            Net,
            FINAL,
            parent="sgd",
            change="The final recipe: Muon on the convolutions, and translation a little milder.",
            target="99.4%: in a few epochs Muon was well ahead of SGD.",
        ),
    )
}


def code(name: str) -> str:
    """The Python source of a variant's network: blocks, function or class, and the call. KeyError if unknown."""
    build = VARIANTS[name].build
    function = build.func if isinstance(build, partial) else build
    text = inspect.getsource(function)
    if isinstance(build, partial):
        arguments = [*map(_named, build.args), *(f"{key}={_named(value)}" for key, value in build.keywords.items())]
        text += f"\n\n{function.__name__}({', '.join(arguments)})\n"
    for part in (plain_cnn, *HEADS, *BLOCKS):  # each may use the ones after it
        if part is not function and re.search(rf"\b{part.__name__}\b", text):
            text = f"{inspect.getsource(part)}\n\n{text}"
    return text


def _named(value: object) -> str:
    return getattr(value, "__name__", repr(value))


def recipe_change(name: str) -> str:
    """A variant's recipe as a change of its parent's, e.g. "Recipe against s5: momentum 0.9 → 0.95"; else all of it."""
    variant = VARIANTS[name]
    if variant.parent is None:
        return str(variant.recipe)
    changes = changes_in_words(variant.recipe.as_dict(), VARIANTS[variant.parent].recipe.as_dict())
    return f"Recipe against {variant.parent}: {changes or 'the same recipe'}"


def changes_in_words(recipe: dict, base: dict) -> str:
    """The fields in which a recipe (as a dict) differs from `base`: "momentum 0.9 → 0.95, ..."; empty if in none."""
    changed = [(key, base[key], type(base[key])(recipe[key])) for key in recipe if recipe[key] != base[key]]
    return ", ".join(f"{key} {_shown(before)} → {_shown(after)}" for key, before, after in changed)


def _shown(value: object) -> object:
    return "none" if value == "" else value
