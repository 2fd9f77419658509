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


def rename(trial: dict) -> dict:
    """The trial with today's names, all values as they are. Parts of the wrong type stay, for the ledger to report."""

    def renamed(part: object, names: dict[str, str]) -> object:
        if not isinstance(part, dict) or names.keys().isdisjoint(part.keys()):  # most parts: a copy takes much longer
            return part
        return {names.get(key, key): value for key, value in part.items()}

    changed = {key: trial[key] for key in ("variant", "recipe", "curve", "device") if key in trial}
    if isinstance(changed.get("variant"), str):
        changed["variant"] = VARIANTS.get(changed["variant"], changed["variant"])
    if "recipe" in changed:
        changed["recipe"] = renamed(changed["recipe"], FIELDS)
    if isinstance(changed.get("curve"), list):
        changed["curve"] = [renamed(epoch, EPOCH_KEYS) for epoch in changed["curve"]]
    if isinstance(changed.get("device"), str):
        changed["device"] = re.sub(r"\b1 threads$", "1 thread", changed["device"])
    return trial | changed


def modernize(trial: dict) -> dict:
    """The trial with today's names, `DEFAULTS` for the missing recipe fields, and `precision` as a key of its own."""
    trial = rename(trial)
    if isinstance(trial.get("recipe"), dict):
        recipe = DEFAULTS | trial["recipe"]
        precision = recipe.pop("precision", "float32")  # a field of the recipe once; float32 before that
        trial = {"precision": precision} | trial | {"recipe": recipe}
    return trial
