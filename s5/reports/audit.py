"""Whether the project's numbers agree: the ledger, the measurements, the weights, the figures and the pages.

`problems` looks at all of them and is what `python -m s5.reports.write --check` and the tests call. Labels of the
full MNIST are used if they are on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from helpers import build
from s5.analysis.inspection import count_macs, count_parameters
from s5.analysis.style import is_drawn_from
from s5.experiments.claims import KNOWN
from s5.experiments.evidence import faults
from s5.experiments.ledger import KEYS, parse_line
from s5.experiments.legacy import NETWORKS
from s5.experiments.variants import NAMED
from s5.networks.grammar import NetworkError, parse
from s5.reports import pages
from s5.reports.measurements import machine_faults, measurement_faults, peer_faults
from s5.reports.prose import prose_faults, sample
from s5.training.augmentation import normalize
from s5.training.checkpoint import CheckpointError, load_weights
from s5.training.files import ROOT, atomic_path
from s5.training.mnist import FILES, load_mnist, validation_split

T = TypeVar("T")
SCREENSHOT = "page.png"  # of docs/index.html: drawn anew whenever that is written
DRAW, SHOOT = "python -m s5.reports.write --figures", "python -m tests.screenshot"
LOGITS = "results/logits.json"
LOGIT_IMAGES = 6  # of the sample
LOGIT_TOLERANCE = 2e-3  # rounding differs between processors
MOST_TURNED = 2  # images whose two best digits are equally likely, which rounding may turn
MERGED = timedelta(days=7)  # lines of another machine may be appended later


def problems(folder: Path = ROOT) -> list[str]:
    """Everything in a copy of the project that contradicts itself, a line each; empty if nothing does.

    The pages and figures are compared only if what they are made from is sound.
    """
    return source_problems(folder) or derived_problems(folder)


def source_problems(folder: Path = ROOT) -> list[str]:
    """What contradicts itself in the ledger, the measurements and the weights."""
    trials, found = _read(folder / "results" / "ledger.jsonl")
    for path in sorted((folder / "results").glob("*.json")):
        found += [f"results/{path.name}: {fault}" for fault in _json_faults(path)]
    try:
        peers = (folder / "results" / "peers.csv").read_text(encoding="utf-8")
        found += [f"results/peers.csv, {fault}" for fault in peer_faults(peers)]
    except (OSError, ValueError) as error:
        found.append(f"results/peers.csv cannot be read: {error}")
    return [*found, *_weights_faults(folder, trials)]


def derived_problems(folder: Path = ROOT) -> list[str]:
    """Pages and figures that are not what the ledger and the measurements give, and numbers without a source."""
    trials, found = _read(folder / "results" / "ledger.jsonl")[0], []
    current = {folder / name: (folder / name).read_text(encoding="utf-8") for name in ("README.md", "RESULTS.md")}
    try:
        sources = [folder / "results" / "ledger.jsonl", *sorted((folder / "results").glob("*.json"))]
        sections = _once("sections", sources, lambda: pages.sections(trials, folder))
        updated = pages.fill(current, sections)
        figures = expected_figures(trials, folder)
    except (KeyError, OSError, TypeError, ValueError) as error:
        return [f"the tables cannot be written: {type(error).__name__}: {error}"]
    for page, text in current.items():
        found += [f"{page.name}, {name}: stale" for name in pages.different_sections(text, updated[page])]
        found += [f"{page.name}: {fault}" for fault in prose_faults(pages.MARKER.sub("", text), trials)]
    for name, (data, command) in figures.items():
        try:
            if not is_drawn_from(folder / "figures" / name, data):
                found.append(f"figures/{name} was drawn from other data: {command}")
        except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for a damaged PNG
            found.append(f"figures/{name} cannot be read: {error}")
    unknown = sorted({path.name for path in (folder / "figures").glob("*.png")} - figures.keys())
    return found + [f"figures/{name} is drawn from nothing that is known" for name in unknown]


def expected_figures(trials: list[dict], folder: Path = ROOT) -> dict[str, tuple[object, str]]:
    """The figures' file names, each with what it is drawn from and the command that draws it; raises as `drawings`."""
    figures = {drawing.name: (drawing.data, DRAW) for drawing in pages.drawings(trials, folder)}
    return figures | {SCREENSHOT: (shown_page(folder), SHOOT)}


def shown_page(folder: Path = ROOT) -> dict[str, str]:
    """What the screenshot is of: the digest of the page. Raises OSError if there is none."""
    return {"page": sha256((folder / "docs" / "index.html").read_bytes()).hexdigest()}


# --- The ledger -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[dict], list[str]]:
    """The trials of a ledger, and all that is wrong with its lines, alone and together."""
    trials, found, seen, curves, latest = [], [], {}, {}, None
    lines = path.read_bytes().split(b"\n")
    if lines.pop():
        found.append(f"{path.name}: the last line has no end")
    for number, line in enumerate(lines, start=1):
        trial, identity, wrong = _checked(line)
        found += [f"{path.name}, line {number}: {fault}" for fault in wrong]
        if trial is None or wrong:
            continue
        trials.append(trial)
        if (first := seen.setdefault(identity, number)) != number:
            found.append(f"{path.name}, line {number}: repeats the trial of line {first}")
        curve = (trial["network"], *(epoch["train_loss"] for epoch in trial["curve"]))
        first, seed = curves.setdefault(curve, (number, trial["seed"]))
        if seed != trial["seed"]:
            found.append(f"{path.name}, line {number}: has the curve of line {first} under another seed")
        moment = datetime.fromisoformat(trial["time"])
        if latest and moment < latest - MERGED:
            found.append(f"{path.name}, line {number}: time is long before that of earlier lines")
        latest = max(moment, latest or moment)
    return trials, found


@lru_cache(maxsize=10_000)  # of many copies of a ledger, few lines differ
def _checked(line: bytes) -> tuple[dict | None, tuple, tuple[str, ...]]:
    """A line's trial, its identity and its faults; without a trial if it is none."""
    try:
        trial, identity = parse_line(line)
        json.loads(line, object_pairs_hook=_without_repeats)
    except ValueError as error:
        return None, (), (f"is {error}",)
    found = [f"has unknown keys, {', '.join(unknown)}"] if (unknown := sorted(trial.keys() - KEYS)) else []
    found += faults(trial)
    if not found:
        found += _network_faults(trial)
        found += _label_faults(trial)
    return trial, identity, tuple(found)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"ambiguous: {next(name for name in names if names.count(name) > 1)} is stated twice")
    return dict(pairs)


def _network_faults(trial: dict) -> Iterator[str]:
    """Parameters and multiply-adds are those of the network, and the variant is one that there is or was."""
    variant, network = trial["variant"], trial["network"]
    if trial["source"]:  # code is not run to check it
        return
    if variant not in KNOWN and variant not in NETWORKS and variant != network:
        yield f"variant {variant!r} is neither a known one nor the network's line"
    try:
        sizes = dict(zip(("parameters", "macs"), _size(network), strict=True))
    except NetworkError as error:
        yield f"network: {error}"
        return
    for name, expected in sizes.items():
        if trial[name] != expected:
            yield f"{name} is {trial[name]:,}, but the network {network!r} has {expected:,}"


@cache
def _size(network: str) -> tuple[int, int]:
    """Parameters and multiply-adds. Raises NetworkError."""
    if network in NAMED:
        return count_parameters(NAMED[network]()), count_macs(NAMED[network]())
    return parse(network).parameters, parse(network).macs


def _label_faults(trial: dict) -> Iterator[str]:
    """A mistake is another digit than the label; without the full MNIST on disk this is not checked."""
    labels = _labels().get(trial["split"]) if trial["data"] == "mnist" else None
    for index, digit in trial["mistakes"].items() if labels else ():
        if labels[int(index)] == digit:
            yield f"mistakes: image {index} is a {digit}, so to take it for one is right"


@cache
def _labels() -> dict[str, list[int]]:
    """The labels of both splits of the full MNIST; empty if it is not on disk."""
    root = Path(os.environ.get("MNIST_ROOT") or ROOT / "data")
    if not all((root / "MNIST" / "raw" / name).exists() for name in FILES):
        return {}
    data = load_mnist(root, allow_sample=False)
    return {"test": data.eval_labels.tolist(), "validation": validation_split(data).eval_labels.tolist()}


# --- Measurements and weights -----------------------------------------------------------------------------------------


def _json_faults(path: Path) -> Iterator[str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        if path.name != Path(LOGITS).name:
            yield from measurement_faults(record)
            yield from _digest_faults(record, path.parent / "weights")
        if path.name == "speed.json":
            yield from machine_faults(record, _size("Net")[1])
            yield from _timed_network_faults(record)
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        yield f"cannot be read: {type(error).__name__}: {error}"


def _digest_faults(record: object, weights: Path) -> Iterator[str]:
    """Results that name the SHA-256 of weights are of weights that are there."""
    parts = record.values() if isinstance(record, dict) else record
    named = {part["weights"] for part in parts if isinstance(part, dict) and "weights" in part}
    for digest in named - {sha256(path.read_bytes()).hexdigest() for path in weights.glob("*.safetensors")}:
        yield f"no file in results/weights has the SHA-256 {digest!r}: these results are of other weights"


def _timed_network_faults(record: dict) -> Iterator[str]:
    """The small networks that were timed are those that are claimed now."""
    for machine, parts in record.items():
        for name, line in parts["small"]["networks"].items() if "small" in parts else ():
            if line != KNOWN[name].network:
                yield f"{machine}: {name} was timed as another network: python -m s5.benchmarks.bench --only small"


def _weights_faults(folder: Path, trials: list[dict]) -> Iterator[str]:
    """Every file of weights gives the recorded logits, and the run that it names is in the ledger."""
    try:
        recorded = dict(json.loads((folder / LOGITS).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        yield f"{LOGITS} cannot be read ({error}): python -m s5.reports.write --logits"
        return
    exported = _export_rows(folder)
    files = {path.stem: path for path in sorted((folder / "results" / "weights").glob("*.safetensors"))}
    if recorded.keys() != files.keys():
        different = ", ".join(sorted(recorded.keys() ^ files.keys()))
        yield f"{LOGITS} and results/weights differ in {different}: python -m s5.reports.write --logits"
    for name, path in files.items():
        try:
            logits = _logits(name, path)
        except CheckpointError as error:
            yield f"results/weights/{path.name}: {error}"
            continue
        if name in recorded and not _are_close(logits, recorded[name]):
            yield f"results/weights/{path.name} gives other logits than {LOGITS}"
        if not (runs := runs_of(path, trials)):
            yield f"results/weights/{path.name} is of a run that the ledger does not have"
        for row in exported:
            if row.get("network") == name and row.get("format") == "PyTorch":
                yield from (f"results/export.json, {name}: {fault}" for fault in _export_faults(row, path, runs))


def _export_faults(row: dict, path: Path, runs: list[dict]) -> Iterator[str]:
    """The network before it is exported has the size of its file and the accuracy of its recorded run."""
    if row["bytes"] != path.stat().st_size:
        yield f"{row['bytes']} bytes, but {path.name} has {path.stat().st_size}"
    if runs and min(abs(row["correct"] - run["curve"][-1]["eval_correct"]) for run in runs) > MOST_TURNED:
        yield f"{row['correct']} correct, but {runs[0]['curve'][-1]['eval_correct']} in the ledger"


def runs_of(path: Path, trials: list[dict]) -> list[dict]:
    """The recorded runs that a file of weights may be of: its network, recipe and seed, in one precision or two.

    Without a note in the file that is the first seed on the test set. Raises CheckpointError if it cannot be read.
    """
    wanted = {"variant": path.stem, "seed": 0, "split": "test", "data": "mnist"}
    wanted |= {key: value for key, value in weights_metadata(path).items() if key in wanted}
    wanted["recipe"] = KNOWN[path.stem].recipe.as_dict()
    return [trial for trial in trials if wanted.items() <= trial.items()]


def _export_rows(folder: Path) -> list[dict]:
    """The rows of results/export.json; none if it is damaged, which is found elsewhere."""
    try:
        rows = json.loads((folder / "results" / "export.json").read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if type(row["correct"]) is type(row["bytes"]) is int]
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return []


def weights_metadata(path: Path) -> dict:
    """What a file of weights says about the run it is of; empty if it says nothing. Raises CheckpointError."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("training", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    return about if isinstance(about, dict) else {}


def record_logits(folder: Path = ROOT) -> None:
    """Write results/logits.json: the logits of every committed network for a few images of the sample."""
    files = sorted((folder / "results" / "weights").glob("*.safetensors"))
    rows = {path.stem: _logits(path.stem, path) for path in files}
    text = json.dumps(rows, separators=(",", ":")).replace("]],", "]],\n")
    with atomic_path(folder / LOGITS) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _logits(name: str, path: Path) -> list[list[float]]:
    """The logits, four decimals, for the first images of the sample. Raises CheckpointError."""
    if name not in KNOWN:
        raise CheckpointError(f"there is no network {name!r}")

    def run() -> list[list[float]]:
        model = load_weights(build(KNOWN[name].build), path).eval()
        with torch.inference_mode():
            logits = model(normalize(_sample_images()))
        return [[round(value, 4) for value in row] for row in logits.tolist()]

    return _once(name, [path], run)


_computed: dict[tuple, object] = {}


def _once(name: str, files: Iterable[Path], compute: Callable[[], T]) -> T:
    """What is computed from files, once for the same contents: of many copies of the project few differ."""
    key = name, *(sha256(path.read_bytes()).digest() for path in files)
    if key not in _computed:
        _computed[key] = compute()
    return _computed[key]


def _sample_images() -> torch.Tensor:
    return sample().eval_images[:LOGIT_IMAGES]


def _are_close(found: list, recorded: object) -> bool:
    """Whether two tables of numbers have the same shape and differ by rounding only."""
    try:
        pairs = [pair for rows in zip(found, recorded, strict=True) for pair in zip(*rows, strict=True)]
        return all(abs(one - other) <= LOGIT_TOLERANCE * max(1, abs(one)) for one, other in pairs)
    except (TypeError, ValueError):
        return False
