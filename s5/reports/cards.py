"""Write a model card for each trained network, results/weights/NAME.md, from the ledger and from measurements.

python -m s5.reports.cards            write the cards
python -m s5.reports.cards --measure  before, measure each network on changed images and save results/robustness.json
python -m s5.reports.cards --check    write nothing; exit code 1 if a card is not what would be written

Measuring takes a few minutes and requires all of MNIST. A network is measured again only if its weights have changed.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from pathlib import Path

from s5.training.command_line import Parser, plural, run_command
from s5.training.files import LEDGER, RESULTS, TRAINED, atomic_path

# Torch and pandas take seconds to load, so what needs them is imported inside functions: --help responds at once.

ROBUSTNESS = RESULTS / "robustness.json"
TOLERANCE = 0.05  # points between the ledger's accuracy, perhaps measured on another device, and this one
CHANGED_IMAGES = 1000  # test images that are changed and prepared
SHOWN = (("shift", 4), ("rotation", 30), ("scale", 0.7), ("thickness", 2), ("noise", 60), ("inversion", 1))
IN_WORDS = {
    "shift": "{} pixels to the right",
    "rotation": "turned by {} degrees",
    "scale": "size × {}",
    "thickness": "strokes {} pixels wider on each side",
    "noise": "noise of standard deviation {} (pixels: 0 to 255)",
    "inversion": "black on white",
}


class CardError(RuntimeError):
    """A card cannot be written; the message says what is missing and what to do."""


def measure(names: list[str], images: int = CHANGED_IMAGES) -> dict:
    """The records of ROBUSTNESS by name, for all test images and, changed, the first `images`.

    A record whose weights are the same is kept. Raises DataError and CheckpointError.
    """
    import torch

    import helpers
    from s5.inference import robustness
    from s5.inference.trained import load_trained
    from s5.training.mnist import load_mnist
    from s5.training.provenance import provenance

    recorded = read_records()
    kept = {name: recorded[name] for name in names if recorded.get(name, {}).get("weights") == checksum(name)}
    if len(kept) == len(names):
        return kept
    data = load_mnist(allow_sample=False)
    labels, few = data.eval_labels, data.eval_images[:images]
    changes = robustness.change_images(few)
    records = {}
    for name in names:
        if name in kept:
            records[name] = kept[name]
            continue
        model = load_trained(name)
        probabilities = helpers.predict(model, data.eval_images)
        table = robustness.reliability(labels, probabilities)
        rejected = robustness.rejection_table(labels, probabilities)
        records[name] = {
            "weights": checksum(name),
            "data": str(data),
            "correct": int((probabilities.argmax(1) == labels).sum()),
            "images": len(labels),
            "confidence": round(100 * float(probabilities.max(1).values.mean()), 3),
            "calibration_error": round(100 * robustness.calibration_error(table), 3),
            "rejection": rejected.drop(columns="95% interval").to_dict("records"),
            "changed_images": len(few),
            "changes": robustness.accuracy_under_changes(model, few, labels[:images], changes).to_dict("records"),
            **provenance(torch.device("cpu"), "float32"),
        }
    return records


def read_records() -> dict:
    """The measurements by name of the network; none if there is no file. Raises CardError if it is damaged."""
    try:
        return json.loads(ROBUSTNESS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CardError(f"{ROBUSTNESS} cannot be read: restore it, or delete it and run with --measure") from error


def checksum(name: str) -> str:
    """The SHA-256 of a network's weights."""
    return hashlib.sha256((TRAINED / f"{name}.safetensors").read_bytes()).hexdigest()


def card(name: str, trials: list[dict], record: dict) -> str:
    """The card of a trained network as Markdown, from the ledger's trials and its record of ROBUSTNESS.

    Raises CardError if the network has no claim in the ledger, or if its weights are of another run or were not
    measured.
    """
    from s5.analysis.statistics import interval_text, noise_is_unknown, wilson_interval
    from s5.experiments.claims import KNOWN
    from s5.reports.audit import runs_of
    from s5.reports.goals import claims_of
    from s5.training.augmentation import MEAN, STD

    claims = claims_of(name, trials)
    if not claims:
        raise CardError(f"the ledger has no trials of {name} on the test set: run s5.experiments.sweep first")
    if record.get("weights") != checksum(name):
        raise CardError(f"{name} was not measured with these weights: run python -m s5.reports.cards --measure")
    own = next((run for run in runs_of(TRAINED / f"{name}.safetensors", trials) if run in claims), None)
    if own is None:
        raise CardError(f"the weights of {name} are of a run that the ledger does not have: save those of a claim")
    total, recipe = record["images"], KNOWN[name].recipe
    if abs(100 * record["correct"] / total - own["accuracy"]) > TOLERANCE:
        found = f"{100 * record['correct'] / total:.2f}%, not the {own['accuracy']:.2f}% of seed {own['seed']}"
        raise CardError(f"the weights of {name} have an accuracy of {found}: save that seed's weights")
    accuracies = [trial["accuracy"] for trial in claims]
    mean, spread = sum(accuracies) / len(accuracies), ""
    if not noise_is_unknown(accuracies):
        deviation, interval = statistics.stdev(accuracies), interval_text(accuracies)
        spread = f", standard deviation {deviation:.2f}, 95% interval {interval}%"
    best = f", by chance the best of {len(claims)}" if len(claims) > 1 and own["accuracy"] == max(accuracies) else ""
    own_low, own_high = wilson_interval(record["correct"], total)
    changes = {(row["change"], row["amount"]): row for row in record["changes"]}
    changed = "\n".join(
        f"| {IN_WORDS[change].format(amount)} | {changes[change, amount]['accuracy']:.1f}% "
        f"| {changes[change, amount]['prepared']:.1f}% |"
        for change, amount in SHOWN
    )
    rejected = next(row for row in record["rejection"] if row["Rejected (%)"] == 1)
    return f"""# {name}

A small convolutional network that reads one handwritten digit, 0 to 9, in an image of 28×28 pixels.

| | |
| --- | --- |
| Network | `{KNOWN[name].network}`: {own["parameters"]:,} parameters, {own["macs"]:,} multiply-adds an image |
| Trained on | MNIST, all 60,000 training images; {training_in_words(recipe)} |
| Accuracy of this recipe | {mean:.2f}% of the 10,000 test images, mean of {plural(len(claims), "seed")}{spread} |
| Accuracy of this file | {100 * record["correct"] / total:.2f}% ({record["correct"]:,} of {total:,}, 95% interval \
{own_low:.2f}–{own_high:.2f}%); seed {own["seed"]}, the first whose weights were kept, whatever its accuracy{best}; \
last epoch |

**Use.** `python -m s5.inference.predict --network {name} photo.jpg` also [prepares](../../inference/preprocessing.py)
photos as MNIST was made. The network's input, `images` in the ONNX file, is float32 (N, 1, 28, 28), NCHW: a white digit
on black, (pixel / 255 − {MEAN}) / {STD}. Its output, `logits`, is float32 (N, 10): softmax gives probabilities.

**Confidence.** Expected calibration error {record["calibration_error"]:.2f} points (mean confidence \
{record["confidence"]:.2f}%). If the 1% of the test
images with the lowest confidence are rejected, {rejected["Mistakes"]} of the other {rejected["Accepted"]:,} are wrong.

**Robustness.** Accuracy on the first {record["changed_images"]:,} test images, changed; prepared: as photos are.

| Change | as they are | prepared |
| --- | ---: | ---: |
{changed}

**Not for** several digits in one image, letters or other signs (it always answers with a digit), colour images or
photos that were not prepared, or any use in which a mistake does harm: cheques, forms and postal codes require a
rule that rejects uncertain images, tested on such images.

Written by `python -m s5.reports.cards`.
"""


def training_in_words(recipe) -> str:
    """A recipe in a few words, as in "20 epochs, batches of 128, sgd 0.1"."""
    words = [
        f"{recipe.epochs} epochs",
        f"batches of {recipe.batch_size}",
        f"{recipe.optimizer} {recipe.learning_rate:g}",
    ]
    words.append(f"{recipe.schedule} schedule")
    last = f", but for the last {recipe.epochs_without_augmentation}" if recipe.epochs_without_augmentation else ""
    words += [f"augmented{last}"] if recipe.augments else ["not augmented"]
    words += [f"averaged weights ({recipe.ema_decay:g})"] if recipe.ema_decay else []
    if recipe.teacher:
        many = f"{recipe.teachers} teachers" if recipe.teachers > 1 else "a teacher"
        words.append(f"distilled from {many} (`{recipe.teacher}`)")
    return ", ".join(words)


def cards() -> dict[Path, str]:
    """The path and content of each trained network's card. Raises CardError."""
    from s5.experiments.ledger import read_ledger
    from s5.inference.trained import trained_networks

    trials, records = read_ledger(LEDGER), read_records()
    return {TRAINED / f"{name}.md": card(name, trials, records.get(name, {})) for name in trained_networks()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser("cards", __doc__, usage="python -m s5.reports.cards [options]")
    parser.add_argument("--measure", action="store_true", help="measure networks whose weights have changed")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    options = parser.parse_args(arguments)
    if options.measure and options.check:
        parser.error("--check writes nothing: it cannot be combined with --measure")

    from s5.inference.trained import trained_networks
    from s5.training.checkpoint import CheckpointError
    from s5.training.mnist import DataError

    try:
        if options.measure:
            records = measure(trained_networks())
            with atomic_path(ROBUSTNESS) as temporary:
                temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        contents = cards()
        changed = [path for path, text in contents.items() if not path.exists() or path.read_text("utf-8") != text]
        for path in changed if not options.check else ():
            with atomic_path(path) as temporary:
                temporary.write_text(contents[path], encoding="utf-8")
    except (CardError, CheckpointError, DataError, OSError) as error:
        print(f"cards: {error}", file=sys.stderr)
        return 1
    names = ", ".join(path.name for path in changed) or "no card"
    print(f"{names} {'would change' if options.check else 'written'}; {len(contents)} in {TRAINED}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    run_command(main)
