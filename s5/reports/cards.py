"""The model card of each trained network, results/weights/NAME.md, from the ledger and from measurements."""

import hashlib
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open

from helpers import predict
from s5.analysis.statistics import interval_text, wilson_interval
from s5.experiments.claims import CLAIMS
from s5.experiments.trial import Trial
from s5.inference import robustness
from s5.inference.trained import IMAGES, LOGITS, load_trained, trained_networks, weights_file
from s5.reports.goals import parameters_text
from s5.reports.speed_tables import read_measurements
from s5.training.files import RESULTS, TRAINED, write_file
from s5.training.mnist import load_data
from s5.training.provenance import provenance
from s5.training.recipe import Recipe

ROBUSTNESS = RESULTS / "robustness.json"
CHANGED_IMAGES = 1000  # test images that are changed and prepared
OUTCOMES = ("right", "wrong", "refused")
CHANGES = (  # that a card shows: name, amount, words
    ("shift", 4, "{} pixels to the right"),
    ("rotation", 30, "turned by {} degrees"),
    ("scale", 0.7, "size × {}"),
    ("thickness", 2, "strokes {} pixels wider on each side"),
    ("noise", 60, "noise of standard deviation {} (pixels: 0 to 255)"),
    ("inversion", 1, "black on white"),
)


def measure() -> None:
    """Measure the networks whose weights have changed, and write ROBUSTNESS: on all test images and, changed, a few.

    Takes a few minutes. Raises DataError and CheckpointError.
    """
    records = read_measurements(ROBUSTNESS)
    measured = {name: record["weights"] for name, record in records.items()}
    stale = [name for name in trained_networks() if measured.get(name) != checksum(name)]
    if not stale:
        return
    data = load_data(allow_sample=False)
    labels = data.eval_labels
    few = data.eval_images[:CHANGED_IMAGES], labels[:CHANGED_IMAGES]
    changes, others = robustness.change_images(few[0]), robustness.other_digits()
    for name in stale:
        model = load_trained(name)
        probabilities = predict(model, data.eval_images)
        table = robustness.reliability(labels, probabilities)
        rejected = robustness.rejection_table(labels, probabilities)
        changed = robustness.accuracy_under_changes(model, *few, changes)
        records[name] = {
            "weights": checksum(name),
            "data": str(data),
            "correct": int((probabilities.argmax(1) == labels).sum()),
            "images": len(labels),
            "confidence": round(100 * float(probabilities.max(1).values.mean()), 3),
            "calibration_error": round(100 * robustness.calibration_error(table), 3),
            "rejection": rejected.drop(columns="95% interval").to_dict("records"),
            "changed_images": CHANGED_IMAGES,
            "changes": changed.to_dict("records"),
            "other_digits": robustness.read_other_digits(model, *others),
            **provenance(torch.device("cpu"), "float32"),
        }
    write_file(ROBUSTNESS, json.dumps({name: records[name] for name in trained_networks()}, indent=1) + "\n")


def checksum(name: str) -> str:
    """The SHA-256 of a network's weights."""
    return hashlib.sha256(weights_file(name).read_bytes()).hexdigest()


def trial_of_weights(name: str, trials: list[Trial]) -> Trial:
    """The recorded trial that the committed weights are of."""
    with safe_open(weights_file(name), "pt") as file:
        seed = json.loads(file.metadata()["training"])["seed"]
    return replace(CLAIMS[name], seeds=(seed,)).trials(trials)[0]


def card(name: str, trials: list[Trial], record: dict) -> str:
    """The card of a trained network as Markdown, from the ledger's trials and its record of ROBUSTNESS.

    Raises ValueError if its weights were not measured.
    """
    if record.get("weights") != checksum(name):
        raise ValueError(f"{name} was not measured with these weights: run python -m s5 report --measure")
    claims, own, total = CLAIMS[name].trials(trials), trial_of_weights(name, trials), record["images"]
    accuracies = [trial.accuracy for trial in claims]
    is_best = own.accuracy >= max(accuracies)
    best = f", by chance the best of {len(claims)}" if is_best else ""
    if own not in claims:
        best = ", not one of these seeds" + ", and by chance better than all of them" * is_best
    first = "the first" if own.seed == claims[0].seed else "the first whose weights were kept"
    own_low, own_high = wilson_interval(record["correct"], total)
    measured = {(row["change"], row["amount"]): row for row in record["changes"]}
    changed = "\n".join(
        f"| {words.format(amount)} | {measured[change, amount]['accuracy']:.1f}% "
        f"| {measured[change, amount]['prepared']:.1f}% |"
        for change, amount, words in CHANGES
    )
    others = record["other_digits"]
    rejected = next(row for row in record["rejection"] if row["Rejected (%)"] == 1)
    return f"""# {name}

A small convolutional network that reads one handwritten digit, 0 to 9, in an image of 28×28 pixels.

| | |
| --- | --- |
| Network | `{CLAIMS[name].network}`: {parameters_text(name)} parameters, {own.macs:,} multiply-adds an image |
| Trained on | MNIST, all 60,000 training images; {training_in_words(CLAIMS[name].recipe)} |
| Accuracy of this recipe | {statistics.mean(accuracies):.2f}% of the 10,000 test images, mean of {len(claims)} seeds, \
standard deviation {statistics.stdev(accuracies):.2f}, 95% interval {interval_text(accuracies)}% |
| Accuracy of this file | {100 * record["correct"] / total:.2f}% ({record["correct"]:,} of {total:,}, 95% interval \
{own_low:.2f}–{own_high:.2f}%); seed {own.seed}, {first}, whatever its accuracy{best}; \
last epoch |

**Use.** `python -m s5 predict --network {name} photo.jpg` also [prepares](../../s5/inference/preprocessing.py)
photos as MNIST was made. In PyTorch the network takes them normalised, float32 (N, 1, 28, 28). In the ONNX files,
`images` is {IMAGES};
`logits` is {LOGITS}.

**Confidence.** Expected calibration error {record["calibration_error"]:.2f} points (mean confidence \
{record["confidence"]:.2f}%). If the 1% of the test
images with the lowest confidence are rejected, {rejected["Mistakes"]} of the other {rejected["Accepted"]:,} are wrong.

**Robustness.** Accuracy on the first {record["changed_images"]:,} test images, changed; prepared: as photos are.

| Change | as they are | prepared |
| --- | ---: | ---: |
{changed}

**Digits of another origin.** Of scikit-learn's {sum(others[name] for name in OUTCOMES):,} digits of 8×8 pixels, \
enlarged with a margin and prepared: {others["right"]:,} right,
{others["wrong"]} wrong ({confusions_text(others)}), {others["refused"]} refused.

**Not for** several digits in one image, letters or other signs (it always answers with a digit), colour images or
photos that were not prepared, or any use in which a mistake does harm: cheques, forms and postal codes require a
rule that rejects uncertain images, tested on such images.

Written by `python -m s5 report`.
"""


def confusions_text(others: dict) -> str:
    """The most frequent confusions of other people's digits, as in "9 → 5: 12, 1 → 7: 9"."""
    return ", ".join(f"{label} → {answer}: {count}" for label, answer, count in others["confusions"])


def other_digits_table() -> pd.DataFrame:
    """One row per trained network: what it does on digits that are not MNIST's (`robustness.other_digits`)."""
    rows = []
    for name, record in read_measurements(ROBUSTNESS).items():
        others = record["other_digits"]
        share = 100 * others["right"] / sum(others[outcome] for outcome in OUTCOMES)
        row = {"Network": f"`{name}`"} | {outcome.capitalize(): f"{others[outcome]:,}" for outcome in OUTCOMES}
        rows.append(row | {"Right (%)": f"{share:.1f}", "Confusions": confusions_text(others)})
    return pd.DataFrame(rows)


def training_in_words(recipe: Recipe) -> str:
    """A claim's recipe in a few words, as in "20 epochs, batches of 128, muon 0.04, …"."""
    last = f" except in the last {recipe.epochs_without_augmentation}" if recipe.epochs_without_augmentation else ""
    teacher = f", distilled from `{recipe.teacher}`" if recipe.teacher else ""
    return (
        f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.optimizer} {recipe.learning_rate:g}, "
        f"{recipe.schedule} schedule, augmented{last}, averaged weights ({recipe.ema_decay:g}){teacher}"
    )


def cards(trials: list[Trial]) -> dict[Path, str]:
    """The path and content of each trained network's card. Raises ValueError."""
    records = read_measurements(ROBUSTNESS)
    return {TRAINED / f"{name}.md": card(name, trials, records.get(name, {})) for name in trained_networks()}
