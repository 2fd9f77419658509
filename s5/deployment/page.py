"""The page on which one draws a digit and the trained networks read it: one HTML file that works offline.

It is made of the files in `page_files/` and of the networks in results/weights; it downloads nothing and sends nothing.
Weights are rounded to 12 or 18 bits, which changes no answer on the 10,000 test images.
"""

import base64
import json
import re
import statistics
import string
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from s5.analysis.inspection import count_parameters
from s5.deployment.layer_graph import Step, steps_of
from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger
from s5.experiments.trial import Trial
from s5.inference import digit_parts, predict, preprocessing, ruled_paper, sheet
from s5.inference.trained import load_trained, trained_networks
from s5.networks import layers
from s5.reports.goals import GOALS
from s5.training import augmentation
from s5.training.command_line import plural
from s5.training.files import ROOT

PAGE = ROOT / "docs" / "index.html"  # where GitHub Pages looks for it
FILES = Path(__file__).parent / "page_files"
SCRIPTS = ("drawing", "images", "preprocessing", "ruled_paper", "photo", "network", "reader", "app")
SHARED = (preprocessing, digit_parts, predict, layers, augmentation)  # modules whose numbers the scripts use too
LARGE = 1000  # numbers in a tensor
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def build_page() -> str:
    """The page as HTML, the same for the same weights, ledger and files.

    Raises CheckpointError if weights are damaged, GraphError if the page cannot compute a layer of a network, and
    OSError if a file cannot be read.
    """
    trials = read_ledger()
    networks = [describe(name, trials) | pack_network(load_trained(name)) for name in trained_networks()]
    scripts = [_without_comments(_read(f"{name}.js")) for name in SCRIPTS]
    return string.Template(_read("template.html")).substitute(
        style=_without_comments(_read("style.css")),
        icon=base64.b64encode((FILES / "icon.png").read_bytes()).decode(),
        networks=json.dumps(networks, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{"),
        scripts="\n".join(f"<script>\n{script}</script>" for script in [constants(scripts), *scripts]),
    )


def describe(name: str, trials: list[Trial]) -> dict:
    """What the page says of a network: name, line, number of parameters, and its mean test accuracy in the ledger."""
    claim = CLAIMS[name]
    accuracies = [trial.accuracy for trial in claim.trials(trials)]
    accuracy = f"{statistics.mean(accuracies):.2f}%, mean of {plural(len(accuracies), 'seed')}"
    title = next((goal.network for goal in GOALS if goal.variant == name), name).replace("*", "").replace("`", "")
    about = {"name": name, "title": title, "line": str(claim.network), "accuracy": accuracy}
    return about | {"parameters": count_parameters(claim.build())}


def pack_network(model: nn.Module) -> dict:
    """The steps of a network for network.js, all JSON: {"steps", "weights", "maps"}.

    A step names its weights by their number in `weights`; `maps` are the numbers of the steps whose outputs are shown.
    Raises GraphError as `layer_graph.steps_of` does.
    """
    steps = steps_of(model)
    tensors = list({id(step.weight): step.weight for step in steps if step.weight is not None}.values())
    entries = []
    for number, step in enumerate(steps):
        entry = {"kind": step.kind}
        if step.inputs != (number - 1,):
            entry["inputs"] = step.inputs
        if step.weight is not None:
            entry["weight"] = next(place for place, tensor in enumerate(tensors) if tensor is step.weight)
            entry |= {name: pack(values) for name in ("scale", "bias") if (values := getattr(step, name)) is not None}
        settings = {name: getattr(step, name) for name in ("groups", "padding", "size", "relu")}
        entries.append(entry | {name: value for name, value in settings.items() if value != getattr(Step, name)})
    shown = [
        number
        for number, (step, following) in enumerate(pairwise(steps))  # the output of each block
        if (step.relu or step.kind == "add") and step.groups == 1 and step.shape[-1] > 1 and following.kind != "add"
    ]
    return {"steps": entries, "weights": [pack(tensor) for tensor in tensors], "maps": shown}


def pack(values: Tensor) -> list:
    """[unit, digits, text]: the values as whole numbers of a unit, plus half of their range, each in base 64.

    Two digits, 12 bits, for large tensors; three digits for small ones, where an error matters more and costs less.
    """
    digits = 2 if values.numel() > LARGE else 3
    middle = 64**digits // 2
    values = values.double().numpy().ravel()
    unit = float(f"{np.abs(values).max() / (middle - 1) or 1:.6g}")
    whole = (values / unit).round().clip(1 - middle, middle - 1).astype(int) + middle
    places = whole[:, None] // 64 ** np.arange(digits)[::-1] % 64
    return [unit, digits, "".join(BASE64[place] for place in places.ravel())]


def constants(scripts: list[str]) -> str:
    """A script with the numbers that the others share with Python: all in capitals that they name."""
    named = set(re.findall(r"\b[A-Z][A-Z_]+\b", "\n".join(scripts)))
    values = {name: value for module in SHARED for name, value in vars(module).items() if name in named}
    for module in (ruled_paper, sheet):  # their names are not unique: RULED_PAPER.INK
        own = {name: np.asarray(value).tolist() for name, value in vars(module).items() if name.isupper()}
        values[module.__name__.split(".")[-1].upper()] = own
    return "".join(f"const {name} = {json.dumps(value)};\n" for name, value in sorted(values.items()))


def _read(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def _without_comments(code: str) -> str:
    """JavaScript or CSS without comments, indentation and empty lines, which are a sixth of it."""
    code = re.sub(r"^ *//[^\n]*\n|^ */\*.*?\*/\n", "", code, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\s+", "", code, flags=re.MULTILINE)
