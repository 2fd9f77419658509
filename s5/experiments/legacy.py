"""Names and defaults of earlier versions, so that their ledger lines can still be read."""

from __future__ import annotations

import re

# Recipe fields that did not exist yet, with the value that describes what was done.
DEFAULTS = {
    "sgd_learning_rate": 0.1,
    "teacher": "",
    "teachers": 1,
    "teacher_weight": 0.5,
    "temperature": 2.0,
    "elastic": 0.0,
    "epochs_without_augmentation": 0,
}

# Earlier name → today's, of recipe fields, …
FIELDS = {"rest_learning_rate": "sgd_learning_rate", "plain_epochs": "epochs_without_augmentation"}
# … of an epoch's keys, …
EPOCH_KEYS = {"test_loss": "eval_loss", "test_accuracy": "eval_accuracy", "test_correct": "eval_correct"}
# … and of variants.
VARIANTS = {
    "seed_recipe": "original",
    "bowled": "radial_bias",
    "placed": "gdconv",
    "placed_24": "gdconv_24",
    "placed_8k": "gdconv_8k",
    "placed_5k": "gdconv_5k",
    "placed_2k": "gdconv_2k",
    "deep_placed_8k": "deep_gdconv_8k",
    "deep_placed_5k": "deep_gdconv_5k",
    "deep_placed_2k": "deep_gdconv_2k",
    "deep_placed_1k": "deep_gdconv_1k",
    "separable_placed": "separable_gdconv",
    "shared_2k_placed": "shared_2k_gdconv",
}


# The network of each variant before a trial's line had a key for it.
NETWORKS = {
    "s5": "Net",
    "sgd": "Net",
    "original": "Net",
    "no_augmentation": "Net",
    "pytorch_example": "pytorch_example",
    "fully_connected": "linear 24",
    "first_experiment": "conv 8 16 / 32 / 40 gap dropout 0.05",
    "no_batchnorm": "plain 4 8 / 16 32 / 40 gap",
    "flattened": "conv 4 8 / 16 32 / 40 flat",
    "dropout": "conv 4 8 / 16 32 / 40 gap dropout 0.05",
    "separable": "separable 16 32 / 64 72 / 96 gap",
    "budget_8k": "conv 4 8 / 12 18 / 24 gap",
    "budget_5k": "conv 4 8 / 10 14 / 18 gap",
    "budget_2k": "conv 4 5 / 6 8 / 11 gap",
    "budget_1k": "conv 3 3 / 4 6 / 7 gap",
    "gdconv": "conv 4 8 / 16 32 / 38 gdconv",
    "gdconv_8k": "conv 4 8 / 12 18 / 20 gdconv",
    "gdconv_5k": "conv 4 6 / 10 12 / 16 gdconv",
    "gdconv_2k": "conv 3 4 / 6 7 / 9 gdconv",
    "cropped_24": "conv 4 8 / 16 32 / 40 gap crop 2",
    "gdconv_24": "conv 4 8 / 16 32 / 40 gdconv crop 2",
    "radial_bias": "conv 4 8 / 16 32 / 40 gap radial 1",
    "deep_8k": "conv 4 6 / 8 12 12 / 14 16 gap",
    "deep_gdconv_8k": "conv 4 6 / 10 12 12 / 14 16 gdconv",
    "deep_gdconv_5k": "conv 4 6 / 8 8 8 / 10 12 gdconv",
    "deep_gdconv_2k": "conv 3 4 / 5 6 6 / 7 gdconv",
    "deep_gdconv_1k": "conv 2 3 / 4 4 4 / 5 gdconv",
    "deep_2k": "conv 3 4 / 5 6 6 / 6 8 gap",
    "small_5k": "conv 4 6 / 8 10 / 12 / 14 gdconv crop 2",
    "small_2k": "conv 3 4 / 6 / 8 / 10 gdconv crop 2",
    "small_1k": "conv 3 4 / 4 / 5 / 6 gdconv crop 2",
    "separable_deep": "separable 16 32 / 48 48 56 / 64 64 gap",
    "separable_deep_8k": "separable 8 16 / 28 32 32 / 40 40 gap",
    "separable_deep_5k": "separable 6 12 / 20 24 24 / 30 30 gap",
    "separable_deep_2k": "separable 5 8 / 11 12 12 / 16 16 gap",
    "separable_deeper_8k": "separable 8 16 / 26 26 26 28 / 36 36 gap",
    "separable_24_2k": "separable 4 8 / 12 12 / 12 14 / 14 gdconv crop 2",
    "separable_24_1k": "separable 3 6 / 8 8 / 9 / 10 gdconv crop 2",
    "separable_gdconv": "separable 8 16 / 48 64 / 72 gdconv",
    "separable_2k": "separable 6 8 / 12 14 / 16 20 gap",
    "separable_1k": "separable 4 6 / 8 10 / 16 gap",
    "shared_5k": "shared 18 ×1 / ×2 / ×2 gdconv",
    "shared_2k": "shared 12 ×1 / ×2 / ×2 gap",
    "shared_2k_gdconv": "shared 10 ×1 / ×2 / ×2 gdconv",
    "shared_1k": "shared 8 ×1 / ×2 / ×2 gap",
    "dense_1k": "dense 4 / 3 / 3 / 3 gdconv crop 2",
    "dense_2k": "dense 3 3 / 3 3 / 3 / 3 gdconv crop 2",
    "dense_5k": "dense 4 4 / 4 4 / 5 5 / 5 gdconv crop 2",
    "shared_24_1k": "shared 8 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared_24_1k_deep": "shared 8 ×1 / ×2 / ×3 / ×3 gdconv crop 2",
    "shared_24_1k_separable": "shared-separable 14 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared_24_2k": "shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared_24_2k_separable": "shared-separable 22 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared_24_2k_deep": "shared 12 ×1 / ×2 / ×3 / ×3 gdconv crop 2",
    "shared_24_5k": "shared 20 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared_24_8k": "shared 27 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "strided": "conv 16 24 / 32 gdconv stem 16",
    "strided_average": "conv 16 24 / 32 gap stem 16",
    "strided_wide": "conv 20 28 / 32 gdconv stem 16",
    "strided_separable": "separable 32 64 / 72 88 gap stem 16",
    "wide": "conv 16 32 / 64 64 / 128 gdconv",
    "to_99_0": "conv 4 8 / 16 32 / 38 gdconv",
    "to_99_4": "conv 4 8 / 16 32 / 40 gdconv crop 2",
    "below_20k": "separable 16 32 / 48 48 56 / 64 64 gap",
    "below_8k": "separable 8 16 / 28 32 32 / 40 40 gap",
    "below_5k": "separable 6 12 / 20 24 24 / 30 30 gap",
    "below_2k": "shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "below_1k": "shared 8 ×1 / ×2 / ×3 / ×3 gdconv crop 2",
}


EARLIER_NETWORKS = {("to_99_4", 19_476): "conv 4 8 / 16 32 / 38 gdconv"}  # by variant and parameters


def rename(trial: dict) -> dict:
    """The trial with today's names, all values as they are. Parts of the wrong type stay, for the ledger to report."""

    def renamed(part: object, names: dict[str, str]) -> object:
        if not isinstance(part, dict) or part.keys().isdisjoint(names):  # most parts; a copy takes long
            return part
        return {names.get(key, key): value for key, value in part.items()}

    changed = {key: trial[key] for key in ("variant", "recipe", "curve", "device") if key in trial}
    if isinstance(changed.get("variant"), str):
        changed["variant"] = VARIANTS.get(changed["variant"], changed["variant"])
    if "recipe" in changed:
        changed["recipe"] = renamed(changed["recipe"], FIELDS)
    curve = changed.get("curve")
    if isinstance(curve, list) and curve and renamed(curve[0], EPOCH_KEYS) is not curve[0]:
        changed["curve"] = [renamed(epoch, EPOCH_KEYS) for epoch in curve]
    if isinstance(changed.get("device"), str) and changed["device"].endswith("1 threads"):
        changed["device"] = re.sub(r"\b1 threads$", "1 thread", changed["device"])
    return trial | changed


def modernize(trial: dict) -> dict:
    """The trial with today's names and keys, and with `DEFAULTS` for the missing recipe fields."""
    trial = rename(trial)
    if isinstance(trial.get("recipe"), dict):
        recipe = DEFAULTS | trial["recipe"]
        precision = recipe.pop("precision", "float32")  # a field of the recipe once; float32 before that
        trial = {"precision": precision, "source": ""} | trial | {"recipe": recipe}
    variant = trial.get("variant")
    if isinstance(variant, str) and variant in NETWORKS and "network" not in trial:
        size = trial.get("parameters")
        earlier = EARLIER_NETWORKS.get((variant, size)) if isinstance(size, int) else None
        trial["network"] = earlier or NETWORKS[variant]
    return trial
