"""Whatever single number is forged in the ledger, the measurements, the weights, the figures or the pages is found.

Each forgery is applied to its own copy of the files; `audit.problems` must then find something new.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from s5.analysis.style import DIGEST
from s5.experiments.ledger import read_ledger
from s5.reports import audit, pages
from s5.reports.prose import NOT_PROSE, NUMBER
from tests.utils import ROOT

PAGES = ("README.md", "RESULTS.md")
FORGERIES = {}  # name: function that forges what is in a folder


def forgery(name: str):
    def keep(function):
        assert name not in FORGERIES
        FORGERIES[name] = function
        return function

    return keep


def rewrite(path: Path, change) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before, "nothing is forged"
    path.write_text(after, encoding="utf-8")


# --- The ledger -------------------------------------------------------------------------------------------------------


def in_ledger(change):
    """Forges all lines, a list of dicts, of which `change` changes some in place."""

    def forge(folder: Path) -> None:
        def rewritten(text: str) -> str:
            trials = [json.loads(line) for line in text.splitlines()]
            change(trials)
            return "".join(json.dumps(trial, separators=(",", ":")) + "\n" for trial in trials)

        rewrite(folder / "results" / "ledger.jsonl", rewritten)

    return forge


def claimed(trials: list[dict]) -> dict:
    """The last trial on the test set that was trained for several epochs, by the labels alone."""

    def is_usual(trial: dict) -> bool:
        return trial["split"] == "test" and trial["epochs"] > 8 and not trial["recipe"].get("teacher")

    return list(filter(is_usual, trials))[-1]


def last_epoch(trial: dict) -> dict:
    return trial["curve"][-1]


def field(name: str, value):
    """Sets a field of a claim: to a value, or to what a function makes of it."""

    def change(trials: list[dict]) -> None:
        trial = claimed(trials)
        trial[name] = value(trial[name]) if callable(value) else value

    return in_ledger(change)


def epoch(name: str, value, number: int = -1):
    """The same for a field of an epoch; `in_recipe` for one of the recipe."""

    def change(trials: list[dict]) -> None:
        each = claimed(trials)["curve"][number]
        each[name] = value(each[name]) if callable(value) else value

    return in_ledger(change)


def in_recipe(name: str, value):
    return in_ledger(lambda trials: claimed(trials)["recipe"].update({name: value}))


def mistake(change):
    return in_ledger(lambda trials: change(claimed(trials)["mistakes"]))


FORGERIES |= {
    "accuracy a tenth higher": field("accuracy", lambda value: value + 0.1),
    "accuracy half a point higher": field("accuracy", lambda value: round(value + 0.5, 2)),
    "accuracy NaN": field("accuracy", float("nan")),
    "accuracy 150": field("accuracy", 150),
    "accuracy as text": field("accuracy", "99.9"),
    "accuracy of the best epoch": in_ledger(
        lambda trials: (trial := max(trials, key=lambda each: each["best_accuracy"] - each["accuracy"])).update(
            accuracy=trial["best_accuracy"]
        )
    ),
    "best accuracy higher": field("best_accuracy", lambda value: value + 0.05),
    "best accuracy lower": field("best_accuracy", lambda value: value - 0.05),
    "a mistake left out": mistake(lambda wrong: wrong.popitem()),
    "a mistake more": mistake(lambda wrong: wrong.update({str(max(map(int, wrong)) + 1): 0})),
    "a mistake outside the images": mistake(lambda wrong: wrong.update({"10000": wrong.popitem()[1]})),
    "a mistake with a negative index": mistake(lambda wrong: wrong.update({"-1": wrong.popitem()[1]})),
    "a mistake with leading zeros": mistake(lambda wrong: wrong.update({"007": wrong.popitem()[1]})),
    "a mistake that is no digit": mistake(lambda wrong: wrong.update(dict.fromkeys(list(wrong)[:1], 10))),
    "a mistake that is text": mistake(lambda wrong: wrong.update(dict.fromkeys(list(wrong)[:1], "3"))),
    "mistakes as a list": field("mistakes", list),
    "one more correct at the end": epoch("eval_correct", lambda value: value + 1),
    "one more correct on the way": epoch("eval_correct", lambda value: value + 1, 2),
    "a better epoch on the way": epoch("eval_accuracy", lambda value: value + 0.02, 2),
    "a better last epoch": epoch("eval_accuracy", lambda value: value + 0.02),
    "a loss ten times smaller": epoch("eval_loss", lambda value: value / 10),
    "a loss below 0": epoch("eval_loss", lambda value: -value),
    "a loss that is NaN": epoch("eval_loss", float("nan")),
    "a loss that is infinite": epoch("train_loss", float("inf")),
    "a loss that is missing": epoch("eval_loss", None),
    "training accuracy of no number of images": epoch("train_accuracy", lambda value: value + 0.0005),
    "training accuracy above 100": epoch("train_accuracy", 101.0),
    "training loss of 0": epoch("train_loss", 0.0),
    "an epoch left out": field("curve", lambda curve: curve[:3] + curve[4:]),
    "an epoch numbered twice": epoch("epoch", 1, 1),
    "an epoch without a field": in_ledger(lambda trials: last_epoch(claimed(trials)).pop("train_loss")),
    "fewer epochs": field("epochs", lambda value: value - 1),
    "fewer epochs in the recipe": in_recipe("epochs", 3),
    "a learning rate": epoch("learning_rate", lambda value: value + 0.0001, 2),
    "the recipe's learning rate": in_recipe("learning_rate", 0.07),
    "the recipe's schedule": in_recipe("schedule", "constant"),
    "the recipe's warm-up": in_recipe("warmup", 0.3),
    "an optimiser that does not exist": in_recipe("optimizer", "magic"),
    "a momentum that is impossible": in_recipe("momentum", 1.5),
    "a field that no recipe has": in_recipe("luck", 7),
    "a recipe without its batch size": in_ledger(lambda trials: claimed(trials)["recipe"].pop("batch_size")),
    "half the seconds": field("seconds", lambda value: value / 2),
    "a hundred times the seconds": field("seconds", lambda value: 100 * value),
    "seconds below 0": field("seconds", lambda value: -value),
    "an epoch in no time": epoch("seconds", 0.0),
    "fewer parameters": field("parameters", lambda value: value - 100),
    "parameters as text": field("parameters", str),
    "fewer multiply-adds": field("macs", lambda value: value // 2),
    "another network": field("network", "conv 4 8 / 16 gap"),
    "a network that does not exist": field("network", "conv many gap"),
    "a variant that does not exist": in_ledger(lambda trials: claimed(trials).update(variant="wonder", network="Net")),
    "no seed": field("seed", None),
    "a negative seed": field("seed", -1),
    "a seed that is no whole number": field("seed", 0.5),
    "a line under another seed": in_ledger(lambda trials: trials.append(claimed(trials) | {"seed": 77})),
    "a line twice": in_ledger(lambda trials: trials.append(claimed(trials))),
    "a line left out": in_ledger(lambda trials: trials.remove(claimed(trials))),
    "the validation split": field("split", "validation"),
    "another split": field("split", "train"),
    "the sample": field("data", "sample"),
    "another precision": field("precision", "float16"),
    "another device": field("device", "the fastest there is"),
    "no version of torch": field("versions", {"python": "3.11.7"}),
    "another commit": field("commit", "the last one"),
    "no time": field("time", "yesterday"),
    "a time without a zone": field("time", lambda value: value.replace("+00:00", "")),
    "a time in the future": field("time", lambda value: value.replace("20", "21", 1)),
    "a time before torch": field("time", lambda value: re.sub(r"^\d{4}", "2019", value)),
    "a time long before its neighbours'": field("time", lambda value: re.sub(r"^\d{4}", "2025", value)),
    "an unknown key": in_ledger(lambda trials: claimed(trials).update(comment="best")),
}


def shortened(trial: dict) -> None:
    """A long run as a short one: everything fits but the learning rates."""
    last = trial["curve"][-1]
    trial["curve"] = [*trial["curve"][:4], last | {"epoch": 5}]
    trial["epochs"] = trial["recipe"]["epochs"] = 5
    trial["seconds"] = round(sum(epoch["seconds"] for epoch in trial["curve"]), 1) + 0.1
    trial["best_accuracy"] = max(epoch["eval_accuracy"] for epoch in trial["curve"])


def improved(trial: dict, correct: int = 20) -> None:
    """More images right, wherever their number stands, but in the mistakes."""
    trial["curve"][-1]["eval_correct"] += correct
    better = trial["curve"][-1]["eval_correct"] / 100
    trial["curve"][-1]["eval_accuracy"] = trial["accuracy"] = trial["best_accuracy"] = better


FORGERIES |= {
    "a long run as a short one": in_ledger(lambda trials: shortened(claimed(trials))),
    "an accuracy wherever it stands": in_ledger(lambda trials: improved(claimed(trials))),
}


@forgery("a value that is stated twice")
def _twice(folder):
    rewrite(folder / "results" / "ledger.jsonl", lambda text: text.replace('{"', '{"accuracy":99.9,"', 1))


@forgery("a torn line")
def _torn(folder):
    rewrite(folder / "results" / "ledger.jsonl", lambda text: text[:-50] + "\n")


@forgery("a last line without an end")
def _no_end(folder):
    rewrite(folder / "results" / "ledger.jsonl", lambda text: text[:-1])


@forgery("a line that is nested 200,000 deep")
def _nested(folder):
    rewrite(folder / "results" / "ledger.jsonl", lambda text: text + "[" * 200_000 + "]" * 200_000 + "\n")


@forgery("a mistake that is none")
def _right(folder):
    labels = audit._labels()
    if not labels:
        pytest.skip("requires the full MNIST: set MNIST_ROOT")
    mistake(lambda wrong: wrong.update({(first := next(iter(wrong))): labels["test"][int(first)]}))(folder)


# --- Measurements -----------------------------------------------------------------------------------------------------


def records(value, *keys):
    """All dicts in a parsed JSON file that have these keys."""
    if isinstance(value, dict) and all(key in value for key in keys):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from records(each, *keys)


def measured(file: str, keys: tuple[str, ...], change):
    """Forges the first record in a JSON file that has these keys."""

    def forge(folder: Path) -> None:
        def rewritten(text: str) -> str:
            content = json.loads(text)
            change(next(records(content, *keys)))
            return json.dumps(content, indent=1) + "\n"

        rewrite(folder / "results" / file, rewritten)

    return forge


def set_to(name: str, value):
    return lambda record: record.update({name: value(record[name]) if callable(value) else value})


def timing(change):
    return measured("speed.json", ("median", "all"), change)


def over_seeds(change):
    return measured("speed.json", ("accuracies",), change)


def exported(change):
    return measured("export.json", ("correct", "accuracy"), change)


def median_name(record: dict) -> str:
    return next(name for name in ("milliseconds", "microseconds", "median") if name in record)


def exported_time(change):
    def forge(folder: Path) -> None:
        content = json.loads((folder / "results" / "export.json").read_text())
        name = "range" if next(records(content, "range"), None) else "low"
        measured("export.json", (name,), change)(folder)

    return forge


FORGERIES |= {
    "a median below its range": timing(lambda record: record.update(median=record["low"] / 2)),
    "a median above its range": timing(lambda record: record.update(median=2 * record["high"])),
    "a median within its range": timing(lambda record: record.update(median=record["low"])),
    "a range that begins lower": timing(set_to("low", lambda value: 0.9 * value)),
    "a range that ends higher": timing(set_to("high", lambda value: 1.1 * value)),
    "a range that is reversed": timing(lambda record: record.update(low=record["high"], high=record["low"])),
    "a timing left out": timing(lambda record: record["all"].remove(min(record["all"]))),
    "a timing that is NaN": timing(lambda record: record["all"].append(float("nan"))),
    "a median that is text": timing(set_to("median", "fast")),
    "a better seed": over_seeds(lambda record: record["accuracies"].sort() or record["accuracies"].append(99.9)),
    "the accuracy of a seed": over_seeds(lambda record: record["accuracies"].__setitem__(0, 99.99)),
    "a mean over seeds": over_seeds(set_to("mean", lambda value: value + 0.05)),
    "a deviation over seeds": over_seeds(set_to("std", lambda value: value / 2)),
    "a minimum over seeds": over_seeds(set_to("minimum", lambda value: value + 0.01)),
    "a p-value": over_seeds(set_to("p of a mean above the target", lambda value: value / 10)),
    "a network that changed after it was timed": measured(
        "speed.json", ("networks",), lambda record: record["networks"].update(below_1k="conv 4 gap")
    ),
    "a seed twice": over_seeds(lambda record: record["seeds"].__setitem__(0, record["seeds"][1])),
    "trials per hour": measured(
        "speed.json",
        ("seconds per epoch",),
        lambda record: next(value for key, value in record.items() if "per hour" in key).update({"1 at a time": 99.0}),
    ),
    "shares above 100%": measured(
        "speed.json", ("percent of time",), lambda record: record["percent of time"].update(other=60.0)
    ),
    "training in less than no time": over_seeds(
        lambda record: record["training seconds"].update(
            all=[2 * value for value in record["seconds from process start"]["all"]]
        )
    ),
    "fewer operations": measured("speed.json", ("GFLOP per epoch",), set_to("GFLOP per epoch", 70.1)),
    "memory below 0": measured("speed.json", ("peak MB",), set_to("peak MB", lambda value: -value)),
    "memory that is infinite": measured("speed.json", ("peak MB",), set_to("peak MB", float("inf"))),
    "another processor": measured("speed.json", ("processor",), set_to("processor", "Abacus")),
    "a measurement in the future": measured("speed.json", ("time",), set_to("time", "2126-01-01T00:00:00+00:00")),
    "an exported network with one more correct": exported(set_to("correct", lambda value: value + 1)),
    "an exported network with another accuracy": exported(set_to("accuracy", lambda value: value + 0.1)),
    "an exported network with a NaN": exported(set_to("accuracy", float("nan"))),
    "a file of fewer than no bytes": measured("export.json", ("bytes",), set_to("bytes", lambda value: -value)),
    "an exported network that is too fast": exported_time(lambda record: record.update({median_name(record): 0.0})),
    "another data set": measured("export.json", ("commit",), set_to("commit", "main")),
}


def in_any_file(change):
    """Forges the first place in a JSON file that a pattern matches, if some file has it."""
    pattern, new = change

    def forge(folder: Path) -> None:
        for path in sorted((folder / "results").glob("*.json")):
            if re.search(pattern, text := path.read_text(encoding="utf-8")):
                path.write_text(re.sub(pattern, new, text, count=1), encoding="utf-8")
                return
        pytest.skip(f"no file of results has {pattern}")

    return forge


FORGERIES |= {
    "a rejected mistake": in_any_file((r'"Mistakes": [1-9]\d*', '"Mistakes": 0')),
    "an accuracy after rejection": in_any_file((r'"Accuracy \(%\)": \d+', '"Accuracy (%)": 98')),
    "results of other weights": in_any_file((r'"weights": "[0-9a-f]{8}', '"weights": "00000000')),
}


def in_peers(old: str, new: str):
    return lambda folder: rewrite(folder / "results" / "peers.csv", lambda text: re.sub(old, new, text, count=1))


FORGERIES |= {
    "a peer with fewer parameters": in_peers(r",(\d+),", ",17,"),
    "a peer without parameters": in_peers(r",(\d+),", ",0,"),
    "a peer whose last epoch is the best": in_peers(r",\d\d\.\d+,(\d\d\.\d+),", r",91.00,\1,"),
    "a peer left out": in_peers(r"\n.*\n", "\n"),
    "a peer that guesses": in_peers(r",\d\d\.\d+,", ",9.44,"),
}

# --- Weights, figures, pages ------------------------------------------------------------------------------------------


def a_file_of_weights(folder: Path) -> Path:
    return sorted((folder / "results" / "weights").glob("*.safetensors"))[-1]


@forgery("weights that are changed")
def _changed_weights(folder):
    path = a_file_of_weights(folder)
    weights = load_file(path)
    name = next(name for name in weights if weights[name].dim() == 4)
    save_file(weights | {name: weights[name] * 1.5}, path)


@forgery("weights that are cut off")
def _cut_weights(folder):
    path = a_file_of_weights(folder)
    path.write_bytes(path.read_bytes()[:-100])


@forgery("weights of a run that is not recorded")
def _foreign_weights(folder):
    path = a_file_of_weights(folder)
    save_file(load_file(path), path, {"training": json.dumps({"variant": path.stem, "seed": 987, "split": "test"})})


@forgery("weights of a network that does not exist")
def _unknown_weights(folder):
    shutil.copy(a_file_of_weights(folder), folder / "results" / "weights" / "wonder.safetensors")


@forgery("weights that are missing")
def _missing_weights(folder):
    a_file_of_weights(folder).unlink()


@forgery("logits")
def _logits(folder):
    rewrite(folder / audit.LOGITS, lambda text: text.replace("1", "2", 1))


def picture(name: str, change):
    """Forges a figure: `change` takes the image and its texts and returns the image, whose digest is kept."""

    def forge(folder: Path) -> None:
        path = folder / "figures" / name
        with Image.open(path) as image:
            image.load()
            about = PngImagePlugin.PngInfo()
            about.add_text(DIGEST, image.info[DIGEST])
            changed = change(image.convert("RGBA"), folder)
        changed.save(path, pnginfo=about)

    return forge


def with_a_dot(image, folder):
    image.putpixel((100, 100), (255, 0, 0, 255))
    return image


def other_picture(image, folder):
    with Image.open(folder / "figures" / "training_time.png") as other:
        return other.convert("RGBA")


for figure in ("curves.png", "frontier.png", "mistakes.png", "page.png"):
    FORGERIES |= {
        f"{figure}: a dot": picture(figure, with_a_dot),
        f"{figure}: another picture": picture(figure, other_picture),
        f"{figure}: without its digest": lambda folder, figure=figure: (
            Image.open(folder / "figures" / figure).convert("RGB").save(folder / "figures" / figure)
        ),
        f"{figure}: missing": lambda folder, figure=figure: (folder / "figures" / figure).unlink(),
    }


@forgery("page.png: of an older page")
def _older_page(folder):
    rewrite(folder / "docs" / "index.html", lambda text: text.replace('"accuracy":"99.', '"accuracy":"98.', 1))


@forgery("a figure that nothing draws")
def _more_figures(folder):
    shutil.copy(folder / "figures" / "curves.png", folder / "figures" / "better.png")


def in_page(page: str, old: str, new: str, number: int = 0):
    """Forges one of the places of a page that match `old`."""

    def forge(folder: Path) -> None:
        def rewritten(text: str) -> str:
            match = list(re.finditer(old, text))[number]
            return text[: match.start()] + match.expand(new) + text[match.end() :]

        rewrite(folder / page, rewritten)

    return forge


def in_section(page: str, number: int):
    """Forges the first number of a section between markers."""

    def forge(folder: Path) -> None:
        def rewritten(text: str) -> str:
            section = list(pages.MARKER.finditer(text))[number]
            digit = re.search(r"\d", text[section.start(2) + len(section[2]) :])
            place = section.start(2) + len(section[2]) + digit.start()
            return f"{text[:place]}{9 - int(digit[0])}{text[place + 1 :]}"

        rewrite(folder / page, rewritten)

    return forge


def in_prose(page: str, number: int):
    """Forges a number outside of the markers; `test_pages.py` tries each of them."""

    def forge(folder: Path) -> None:
        def rewritten(text: str) -> str:
            prose = pages.MARKER.sub(lambda match: " " * len(match[0]), text)
            prose = NOT_PROSE.sub(lambda match: " " * len(match[0]), prose)
            place = list(NUMBER.finditer(prose))[number].start()
            return f"{text[:place]}1{text[place:]}"

        rewrite(folder / page, rewritten)

    return forge


for page in PAGES:
    FORGERIES |= {f"{page}: section {number}": in_section(page, number) for number in (0, 1, 2, -2, -1)}
    FORGERIES |= {f"{page}: number {number} of the prose": in_prose(page, number) for number in (0, 3, 7, -1)}
    FORGERIES |= {
        f"{page}: a new sentence": in_page(page, r"\n## ", r"\nIt reaches 99.99%.\n\n## ", -1),
        f"{page}: a table without its last row": in_page(page, r"\n\|[^\n]*\n<!-- /", r"\n<!-- /"),
        f"{page}: a marker left out": in_page(page, r"<!-- /[\w-]+ -->", "", -1),
        f"{page}: a better mean": in_page(page, r"99\.\d+ ", "99.99 "),
    }
FORGERIES["a goal that is reached"] = in_page("RESULTS.md", r"[^|]* short ", " yes ")


# --- The test ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """A copy of the files, with current pages, and what is wrong with it: nothing, if the figures are current too."""
    folder = tmp_path_factory.mktemp("genuine")
    for name in ("results", "figures", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.lock", ".*"))
    current = {folder / name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    sections = pages.sections(read_ledger(folder / "results" / "ledger.jsonl"), folder)
    for page, text in pages.fill(current, sections).items():
        page.write_text(text, encoding="utf-8")
    return folder, set(audit.problems(folder))


def test_nothing_new_is_found_in_a_copy(genuine, tmp_path):
    folder, known = genuine
    shutil.copytree(folder, tmp_path / "copy")
    assert set(audit.problems(tmp_path / "copy")) == known


def test_there_are_many_forgeries():
    assert len(FORGERIES) >= 60


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_found(name, genuine, tmp_path):
    folder, known = genuine
    forged = tmp_path / "forged"
    shutil.copytree(folder, forged)
    FORGERIES[name](forged)
    assert set(audit.problems(forged)) - known, name


def test_the_committed_evidence_has_no_problems():
    assert audit.problems() == [], "see python -m s5.reports.write --check"


def test_the_labels_are_checked_if_mnist_is_at_hand():
    assert bool(audit._labels()) or "MNIST_ROOT" not in os.environ
