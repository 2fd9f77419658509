"""Write the page on which one draws a digit and the trained networks read it: one HTML file that works offline.

python -m s5.deployment.page                 write docs/index.html (requires the full MNIST)
python -m s5.deployment.page --check         only check that it is up to date
python -m s5.deployment.page --output FILE   write it elsewhere

Open the file in a browser, or serve it with GitHub Pages. The page is made of the files in `page_files/` and of the
networks in results/weights; it downloads nothing and sends nothing. The weights are rounded, as little as the size of
the page allows, and so that no prediction of the 10,000 test images changes.
"""

from __future__ import annotations

import base64
import json
import re
import string
import sys
from pathlib import Path

from s5.training.command_line import Parser, output_file, run_command
from s5.training.files import ROOT, atomic_path

# Torch takes seconds to load, so what needs it is imported inside functions: --help responds at once.

PAGE = ROOT / "docs" / "index.html"  # where GitHub Pages looks for it
FILES = Path(__file__).parent / "page_files"
SCRIPTS = ("drawing.js", "images.js", "preprocessing.js", "network.js", "app.js")
MAX_BYTES = 150_000
SMALL = 3_000  # parameters; smaller networks react most to rounding, and take little room
FIRST = "s5"  # the network that is selected when the page opens
SETTINGS = ("SIDE", "BOX", "WORKING_SIDE", "MIN_CONTRAST", "MAX_INK", "MAX_TEXTURE", "MIN_STROKE")  # of preprocessing
PART_SETTINGS = (  # of `digit_parts`; all are for preprocessing.js
    *("MAX_ASPECT", "MIN_BOX", "MAX_LINES", "MIN_INSIDE", "MIN_INSIDE_BOX", "MAX_FILLED", "MAX_SOLIDITY", "MIN_ROUND"),
    *("MIN_HEIGHT", "MIN_PART"),
)
NETWORKS = re.compile(r'<script type="application/json" id="networks">(.*?)</script>', re.DOTALL)

Roundings = dict[str, tuple[tuple[int, int], float]]  # name of a network: packing and stretch


class PageError(RuntimeError):
    """The page cannot be made; the message says why."""


def build_page(roundings: Roundings) -> str:
    """The page as HTML, the same for the same weights, ledger and files; a network without rounding is packed FINE.

    Raises PageError if there are no weights, CheckpointError if weights are damaged, GraphError if the page cannot
    compute a layer of a network, and OSError if a file cannot be read.
    """
    from s5.deployment import packing
    from s5.experiments.ledger import read_ledger
    from s5.inference import digit_parts, preprocessing
    from s5.inference.trained import load_trained, trained_networks
    from s5.training import augmentation

    names = trained_networks()
    if not names:
        raise PageError("there are no trained networks in results/weights")
    trials = read_ledger()
    networks = [
        describe(name, trials) | packing.pack_network(load_trained(name), *roundings.get(name, ())) for name in names
    ]
    constants = {name: getattr(preprocessing, name) for name in SETTINGS}
    constants |= {name: getattr(digit_parts, name) for name in PART_SETTINGS}
    constants |= {name: getattr(layers, name) for name in ("MAX_SLANT", "MIN_SCALE", "MAX_SCALE")}  # of deskew
    constants |= {"MEAN": augmentation.MEAN, "STD": augmentation.STD, "DIGITS": packing.DIGITS, "FINE": packing.FINE}
    constants |= {"FIRST": FIRST if FIRST in names else names[0]}
    scripts = ["".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items())]
    scripts += [_without_comments(_read(name)) for name in SCRIPTS]
    return string.Template(_read("template.html")).substitute(
        style=_without_comments(_read("style.css")),
        icon=base64.b64encode((FILES / "icon.png").read_bytes()).decode(),
        repository=repository(),
        networks=json.dumps(networks, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{"),
        scripts="\n".join(f"<script>\n{script}</script>" for script in scripts),
    )


def describe(name: str, trials: list[dict]) -> dict:
    """What the page says of a network: name, line, number of parameters, and its mean test accuracy in the ledger."""
    from s5.analysis.inspection import count_parameters
    from s5.experiments.claims import KNOWN
    from s5.reports.goals import GOALS, claims_of

    goal = next((goal for goal in GOALS if goal.variant == name), None)
    accuracies = [trial["accuracy"] for trial in claims_of(name, trials)]
    return {
        "name": name,
        "title": re.sub("[*`]", "", goal.network) if goal else name,
        "line": str(KNOWN[name].network),
        "parameters": count_parameters(KNOWN[name].build()),
        "accuracy": f"{sum(accuracies) / len(accuracies):.2f}%" if accuracies else "not claimed",
        "seeds": len(accuracies),
    }


def choose_roundings() -> Roundings:
    """The finest rounding of each network with which the page is small enough and no test image's prediction changes.

    Raises PageError if there is none, and DataError if the full MNIST is missing.
    """
    from s5.analysis.inspection import count_parameters
    from s5.deployment.packing import COARSE, FINE, PackingError, fit
    from s5.inference.trained import load_trained, trained_networks
    from s5.training.mnist import load_mnist

    models = {name: load_trained(name) for name in trained_networks()}
    is_small = {name: count_parameters(model) < SMALL for name, model in models.items()}
    images = load_mnist(allow_sample=False).eval_images
    for coarse in COARSE:
        packings = {name: FINE if is_small[name] else coarse for name in models}
        if len(build_page({name: (packing, 1.0) for name, packing in packings.items()}).encode()) > MAX_BYTES - 100:
            continue  # 100: a stretch has more characters than 1.0
        try:
            return {name: (packings[name], fit(model, packings[name], images)) for name, model in models.items()}
        except PackingError as error:
            raise PageError(f"{error} of the test images") from error
    raise PageError(f"no rounding makes the page smaller than {MAX_BYTES:,} bytes")


def recorded_roundings(path: Path) -> Roundings:
    """The rounding of each network of a page that was written before; none if there is no page.

    Raises PageError if the page was changed so that they cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        networks = json.loads(NETWORKS.search(path.read_text(encoding="utf-8"))[1])
        return {network["name"]: (tuple(network["packing"]), network["stretch"]) for network in networks}
    except (ValueError, TypeError, KeyError) as error:
        raise PageError(f"{path} is not a page of this program: write it anew without --check") from error


def repository() -> str:
    """The address of the project, from pyproject.toml. Raises PageError if there is none."""
    found = re.search(r'^Homepage = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise PageError("pyproject.toml has no Homepage")
    return found[1]


def _read(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def _without_comments(code: str) -> str:
    """JavaScript or CSS without comments, indentation and empty lines, which are a sixth of it."""
    code = re.sub(r"^ *//[^\n]*\n|^ */\*.*?\*/\n", "", code, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\s+", "", code, flags=re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 for an error or, with --check, for a stale page."""
    parser = Parser("page", __doc__, usage="python -m s5.deployment.page [options]")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is stale")
    parser.add_argument("--output", type=output_file, default=PAGE, metavar="FILE", help="default: docs/index.html")
    options = parser.parse_args(arguments)

    from s5.deployment.layer_graph import GraphError
    from s5.training.checkpoint import CheckpointError
    from s5.training.mnist import DataError

    try:
        page = build_page(recorded_roundings(options.output) if options.check else choose_roundings()).encode()
        stale = not options.output.is_file() or options.output.read_bytes() != page
        if stale and not options.check:
            with atomic_path(options.output) as temporary:
                temporary.write_bytes(page)
    except (PageError, CheckpointError, GraphError, DataError, OSError) as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    state = "up to date" if not stale else "stale: python -m s5.deployment.page" if options.check else "written"
    print(f"{options.output}: {state}, {len(page):,} bytes")
    return int(options.check and stale)


if __name__ == "__main__":
    run_command(main)
