"""The networks and recipes that the experiments notebook compares, one short entry each.

A variant states its difference from its parent and, before it was run, what was expected of it.
"""

import inspect
from dataclasses import dataclass, replace

from torch import nn

from helpers import Net
from s5.networks import grammar
from s5.networks.layers import pytorch_example
from s5.networks.user_code import Source
from s5.training.recipe import NO_AUGMENTATION, Recipe

NAMED = {"Net": Net, "pytorch_example": pytorch_example}  # networks that are no line of `grammar.py`


@dataclass(frozen=True)
class Variant:
    """A network and the recipe that trains it."""

    name: str
    network: str | Source  # a line of `grammar.py`, a key of NAMED, or Python code
    recipe: Recipe
    change: str = ""  # against the parent
    target: str = ""  # the expectation, written before the run
    parent: str | None = None

    @property
    def reference(self) -> str | Source:
        """What `claims.find_variant` finds it by, also in another process."""
        return self.network if isinstance(self.network, Source) else self.name

    @property
    def network_name(self) -> str:
        """How the ledger names the network: as `network`, or by the name of the source."""
        return self.network.name if isinstance(self.network, Source) else self.network

    def build(self) -> nn.Module:
        """A new network. Raises NetworkError."""
        if isinstance(self.network, Source):
            return self.network.build()
        return NAMED[self.network]() if self.network in NAMED else grammar.parse(self.network).build()


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
            "linear 24",
            NOT_AUGMENTED,
            change="The starting point: every pixel is an input, and no one says which pixels are neighbours.",
            target="About 97%: what a small fully-connected network is known to reach.",
        ),
        Variant(
            "pytorch_example",
            "pytorch_example",
            PYTORCH_EXAMPLE,
            parent="fully_connected",
            change="The network most people meet first: two wide convolutions and two linear layers, 14 epochs.",
            target="99.2% from 66 times the parameters.",
        ),
        Variant(
            "two_convolutions",
            "conv 16 / 112 gap",
            NOT_AUGMENTED,
            parent="fully_connected",
            change="Two 3×3 convolutions with BatchNorm, a pooling between them, then a global average.",
            target="Far better than without convolution, about 98%, although an output sees only 8×8 pixels.",
        ),
        Variant(
            "three_convolutions",
            "conv 12 / 32 / 48 gap",
            NOT_AUGMENTED,
            parent="two_convolutions",
            change="A second pooling and a third convolution; the others are narrower.",
            target="Clearly better: an output now sees 18×18 pixels, most of a digit.",
        ),
        Variant(
            "four_convolutions",
            "conv 8 16 / 32 / 40 gap",
            NOT_AUGMENTED,
            parent="three_convolutions",
            change="A second convolution at full resolution; the first and the last are narrower.",
            target="A little better: the same budget in more steps, and 20×20 pixels.",
        ),
        Variant(
            "five_convolutions",
            "Net",
            NOT_AUGMENTED,
            parent="four_convolutions",
            change="Net: a second convolution at half resolution; the first two are narrower.",
            target="A little better again; this guess was written after its first runs.",
        ),
        Variant(
            "rotation",
            "Net",
            replace(NOT_AUGMENTED, rotation=SGD.rotation),
            parent="five_convolutions",
            change="The training images are rotated by up to ±10°.",
            target="Fewer errors: people write at a slant.",
        ),
        Variant(
            "translation",
            "Net",
            replace(NOT_AUGMENTED, translation=SGD.translation),
            parent="five_convolutions",
            change="The training images are moved by up to ±10%.",
            target="Little: all digits of MNIST are centred already, and convolutions do not care where a stroke lies.",
        ),
        Variant(
            "augmentation",
            "Net",
            SGD,
            parent="five_convolutions",
            change="Rotation ±10°, translation ±10%, scale ±10% and shear ±6°.",
            target="Clearly better: 20 passes over the same images can be learnt by heart; a mean above 99.4%.",
        ),
        Variant(
            "original",
            "Net",
            ORIGINAL,
            parent="augmentation",
            change="The recipe of the original document: SGD 0.05 with steps, batches of 64, other augmentation.",
            target="99.4% in the last epoch, what the original document reports along the way.",
        ),
        Variant(
            "no_batchnorm",
            "plain 4 8 / 16 32 / 40 gap",
            SGD,
            parent="augmentation",
            change="No BatchNorm; each convolution has a bias instead.",
            target="Worse, if it trains at all at this learning rate.",
        ),
        Variant(
            "flattened",
            "conv 4 8 / 16 32 / 40 flat",
            SGD,
            parent="augmentation",
            change="No global average pooling: twice the parameters; the linear layer sees every position.",
            target="A little better: where a stroke lies matters, and the budget is broken for it.",
        ),
        Variant(
            "early_pooling",
            "conv 4 / 8 / 16 32 40 gap",
            SGD,
            parent="augmentation",
            change="The same five convolutions, but the first pooling stands one convolution earlier, the second two.",
            target="Worse: strokes are two or three pixels wide, and two layers are too few before half the pixels go.",
        ),
        Variant(
            "large_kernels",
            "conv5 8 / 25 / 20 gap",
            SGD,
            parent="augmentation",
            change="Three 5×5 convolutions instead of five of 3×3.",
            target="Worse: two 3×3 convolutions see as far as one of 5×5, with fewer weights and a ReLU between them.",
        ),
        Variant(
            "squeeze",
            "conv 4 8 / 20 48 / 76 gap squeeze 8",
            SGD,
            parent="augmentation",
            change="A 1×1 convolution to 8 channels before each pooling; what it saves makes the others wider.",
            target="A little better: more channels where the 3×3 convolutions look for patterns.",
        ),
        Variant(
            "dropout",
            "conv 4 8 / 16 32 / 40 gap dropout 0.05",
            SGD,
            parent="augmentation",
            change="Dropout 0.05 after each pooling.",
            target="No difference: a network this small, trained with augmentation, hardly overfits.",
        ),
        Variant(
            "separable",
            "separable 16 32 / 64 72 / 96 gap",
            SGD,
            parent="augmentation",
            change="Depthwise-separable convolutions: more channels for the same budget.",
            target="Equal or better accuracy from the same budget, for more multiply-adds.",
        ),
        Variant(
            "budget_8k",
            "conv 4 8 / 12 18 / 24 gap",
            SGD,
            parent="augmentation",
            change="Narrower after the first pooling: fewer than 8,000 parameters.",
            target="About 99.3%.",
        ),
        Variant(
            "budget_5k",
            "conv 4 8 / 10 14 / 18 gap",
            SGD,
            parent="budget_8k",
            change="Narrower again: fewer than 5,000 parameters.",
            target="About 99.2%.",
        ),
        Variant(
            "budget_2k",
            "conv 4 5 / 6 8 / 11 gap",
            SGD,
            parent="budget_5k",
            change="Narrower everywhere: fewer than 2,000 parameters.",
            target="About 98.8%.",
        ),
        Variant(
            "budget_1k",
            "conv 3 3 / 4 6 / 7 gap",
            SGD,
            parent="budget_2k",
            change="Narrower again: fewer than 1,000 parameters.",
            target="About 98%.",
        ),
        Variant(
            "constant_rate",
            "Net",
            replace(SGD, schedule="constant"),
            parent="augmentation",
            change="The learning rate stays at 0.1 after the warm-up.",
            target="Worse: with a high rate the weights never settle, although their average is what is evaluated.",
        ),
        Variant(
            "small_batches",
            "Net",
            replace(SGD, batch_size=32),
            parent="augmentation",
            change="Batches of 32 images instead of 128: four times as many steps, each noisier.",
            target="No clear difference, for more time.",
        ),
        Variant(
            "no_average",
            "Net",
            replace(SGD, ema_decay=0.0),
            parent="augmentation",
            change="The last weights are evaluated, not their moving average.",
            target="No difference at the end, where the rate is near 0; a rougher curve on the way.",
        ),
        Variant(
            "adam",
            "Net",
            replace(SGD, optimizer="adam", learning_rate=0.003),
            parent="augmentation",
            change="Adam with a rate of 0.003 instead of SGD with 0.1.",
            target="Faster in the first epochs, no better in the last.",
        ),
        Variant(
            "s5",
            "Net",
            FINAL,
            parent="augmentation",
            change="The final recipe: Muon on the convolutions; translation and weight decay are milder.",
            target="99.4%: in a few epochs Muon was well ahead of SGD.",
        ),
    )
}


def code(name: str) -> str:
    """What a variant's network is written as: a line, or its Python source. KeyError if the name is unknown."""
    network = VARIANTS[name].network
    return inspect.getsource(NAMED[network]) if network in NAMED else network


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
