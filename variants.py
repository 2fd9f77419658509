"""The architectures and recipes that the experiments compare, one short entry each.

A variant says what differs from its parent and what was expected of it, before it was run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from helpers import Net
from recipe import NO_AUGMENTATION, Recipe


@dataclass(frozen=True)
class Variant:
    """An architecture with the recipe it is trained by."""

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    change: str  # against the parent
    target: str  # what was expected, written before the run
    parent: str | None = None


# --- Recipes ----------------------------------------------------------------------------------------------------------

FINAL = Recipe()

NOT_AUGMENTED = replace(FINAL, **NO_AUGMENTATION)

SEED = Recipe(  # as the document that the project started from has it
    epochs=20,
    batch_size=64,
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
    SEED,
    optimizer="adam",
    learning_rate=0.001,
    schedule="cosine",
    label_smoothing=0.1,
    rotation=0.0,
    translation=0.0,
)

PYTORCH_EXAMPLE = replace(  # github.com/pytorch/examples, mnist/main.py, its default settings
    SEED,
    epochs=14,
    optimizer="adadelta",
    learning_rate=1.0,
    step_epochs=1,
    step_factor=0.7,
    rotation=0.0,
    translation=0.0,
)


# --- Architectures ----------------------------------------------------------------------------------------------------


def conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    """3×3 convolution, BatchNorm, ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def plain_conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    """3×3 convolution with a bias, ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


def separable_block(inputs: int, outputs: int) -> list[nn.Module]:
    """Depthwise 3×3 convolution, then a 1×1 convolution across channels (Howard et al., MobileNets, 2017)."""
    return [
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def head(channels: int) -> list[nn.Module]:
    """Global average pooling and the linear classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def fully_connected() -> nn.Module:
    """No convolution at all: 19,090 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10))


def pytorch_example() -> nn.Module:
    """The network of github.com/pytorch/examples, mnist/main.py, as logits: 1,199,882 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


def first_experiment() -> nn.Module:
    """Four convolutions, 8 → 16 → 32 → 40 channels, dropout 0.05: 17,954 parameters.

    Channels, dropout and the parameter count are recorded; where the pooling stood is not, so it stands here
    where `Net` has it.
    """
    return nn.Sequential(
        *conv_block(1, 8),
        *conv_block(8, 16),
        nn.MaxPool2d(2),
        nn.Dropout(0.05),
        *conv_block(16, 32),
        nn.MaxPool2d(2),
        nn.Dropout(0.05),
        *conv_block(32, 40),
        *head(40),
    )


def like_net(channels=(4, 8, 16, 32, 40), block=conv_block, dropout: float = 0.0) -> nn.Module:
    """`Net`'s layout with other widths, another kind of block, or dropout after each pooling."""
    one, two, three, four, five = channels
    between = [nn.MaxPool2d(2), nn.Dropout(dropout)] if dropout else [nn.MaxPool2d(2)]
    return nn.Sequential(
        *block(1, one),
        *block(one, two),
        *between,
        *block(two, three),
        *block(three, four),
        *between,
        *block(four, five),
        *head(five),
    )


def flattened() -> nn.Module:
    """`Net` without global average pooling: the linear layer sees every place of every map; 37,414 parameters."""
    return nn.Sequential(*list(like_net())[:-3], nn.Flatten(), nn.Linear(40 * 7 * 7, 10))


def separable(channels=(16, 32, 64, 72, 96)) -> nn.Module:
    """One ordinary convolution, then depthwise-separable ones, wider for the same budget: 17,778 parameters."""
    one, two, three, four, five = channels
    return nn.Sequential(
        *conv_block(1, one),
        *separable_block(one, two),
        nn.MaxPool2d(2),
        *separable_block(two, three),
        *separable_block(three, four),
        nn.MaxPool2d(2),
        *separable_block(four, five),
        *head(five),
    )


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "fully_connected",
            fully_connected,
            NOT_AUGMENTED,
            change="Where everyone starts: every pixel is a number, nothing knows that pixels have neighbours.",
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
            first_experiment,
            FIRST_EXPERIMENT,
            parent="pytorch_example",
            change="The budget: four convolutions, dropout 0.05, Adam 0.001, label smoothing, cosine.",
            target="99.0%, what was recorded for it.",
        ),
        Variant(
            "seed_recipe",
            Net,
            SEED,
            parent="first_experiment",
            change="Net: a fifth convolution, no dropout. SGD 0.05 with steps, rotation ±15°, translation ±10%.",
            target="99.4% in the last epoch, what the original document reports along the way.",
        ),
        Variant(
            "s5",
            Net,
            FINAL,
            parent="seed_recipe",
            change="The same network by the final recipe.",
            target="A mean above 99.4% in the last epoch.",
        ),
        Variant(
            "no_augmentation",
            Net,
            NOT_AUGMENTED,
            parent="s5",
            change="The training images as they are.",
            target="Clearly worse: 20 passes over the same images can be learnt by heart.",
        ),
        Variant(
            "no_batchnorm",
            partial(like_net, block=plain_conv_block),
            FINAL,
            parent="s5",
            change="No BatchNorm; each convolution has a bias instead.",
            target="Worse, if it trains at all at this learning rate.",
        ),
        Variant(
            "flattened",
            flattened,
            FINAL,
            parent="s5",
            change="No global average pooling: twice the parameters, in a linear layer that sees every place.",
            target="A little better: where a stroke lies matters, and the budget is broken for it.",
        ),
        Variant(
            "dropout",
            partial(like_net, dropout=0.05),
            FINAL,
            parent="s5",
            change="Dropout 0.05 after each pooling.",
            target="No difference: a network this small, trained with augmentation, hardly overfits.",
        ),
        Variant(
            "separable",
            separable,
            FINAL,
            parent="s5",
            change="Depthwise-separable convolutions: more channels for the same budget.",
            target="Equal or better accuracy from the same budget, for more multiply-adds.",
        ),
        Variant(
            "budget_8k",
            partial(like_net, (4, 8, 12, 18, 24)),
            FINAL,
            parent="s5",
            change="Narrower everywhere: fewer than 8,000 parameters.",
            target="About 99.3%.",
        ),
        Variant(
            "budget_5k",
            partial(like_net, (4, 8, 10, 14, 18)),
            FINAL,
            parent="budget_8k",
            change="Fewer than 5,000 parameters.",
            target="About 99.2%.",
        ),
        Variant(
            "budget_2k",
            partial(like_net, (4, 5, 6, 8, 11)),
            FINAL,
            parent="budget_5k",
            change="Fewer than 2,000 parameters.",
            target="About 98.8%.",
        ),
        Variant(
            "budget_1k",
            partial(like_net, (3, 3, 4, 6, 7)),
            FINAL,
            parent="budget_2k",
            change="Fewer than 1,000 parameters.",
            target="About 98%.",
        ),
    )
}


def code(name: str) -> str:
    """The Python code of a variant's network, for a notebook to show: building blocks, function or class, arguments.

    KeyError for an unknown name.
    """
    build = VARIANTS[name].build
    function = build.func if isinstance(build, partial) else build
    text = inspect.getsource(function)
    if isinstance(build, partial):
        given = [*map(repr, build.args), *(f"{k}={getattr(v, '__name__', v)}" for k, v in build.keywords.items())]
        text += f"\n\n{function.__name__}({', '.join(given)})\n"
    for part in (like_net, head, separable_block, plain_conv_block, conv_block):  # each may use the ones after it
        if part is not function and re.search(rf"\b{part.__name__}\b", text):
            text = f"{inspect.getsource(part)}\n\n{text}"
    return text


def recipe_change(name: str) -> str:
    """What a variant's recipe changes against its parent's ("Recipe against s5: momentum 0.9 → 0.95"), or all of it."""
    variant = VARIANTS[name]
    if variant.parent is None:
        return str(variant.recipe)
    changes = changes_in_words(variant.recipe.as_dict(), VARIANTS[variant.parent].recipe.as_dict())
    return f"Recipe against {variant.parent}: {changes or 'the same recipe'}"


def changes_in_words(ours: dict, theirs: dict) -> str:
    """What `ours` changes against `theirs`, two recipes as dicts: "momentum 0.9 → 0.95, ..."; empty when nothing."""
    return ", ".join(f"{key} {theirs[key]} → {ours[key]}" for key in ours if ours[key] != theirs[key])
