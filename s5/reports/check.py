"""Whether pages, cards, figures, notebooks, weights and ledger agree: `python -m s5 report --check`.

The checks yield a text for all that is wrong. One that begins with NOTE says what is known to be so, or could not be
checked here: it is shown, and the check passes.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from helpers import mistakes, predict
from s5.analysis.notebook import Table
from s5.analysis.statistics import describe_seeds
from s5.experiments.claims import BASELINE, CLAIMS, FASHION_CLAIMS, Claim
from s5.experiments.ledger import parse_line, select
from s5.experiments.trial import IMAGES, Trial
from s5.inference.trained import load_trained, trained_networks
from s5.reports import tables, transfer
from s5.reports.cards import trial_of_weights
from s5.reports.pages import FIGURES, alternatives, has_text, texts
from s5.reports.variant_map import map_table, plot_map
from s5.training.files import LEDGER, ROOT
from s5.training.mnist import find_files, load_data
from s5.training.provenance import git

EXPERIMENTS = ROOT / "ERAv4_MNIST_model_experiments.ipynb"
NOTEBOOKS = (ROOT / "ERAv4_MNIST_model_S5.ipynb", EXPERIMENTS)
SEED = 100  # of the runs that the experiments notebook compares image by image
REWRITTEN = "803cc17a156790b5aaac4d87f2db52cd486fcc73"  # the commit of the ledger in today's form; now it only grows
STRICT_FROM = "2026-12-01"  # what a claim that was frozen before this day misses is only noted
ROUNDING = 2  # images whose two best digits are equally likely, which another processor may take for the other
NOTE = "note: "


def report(trials: list[Trial]) -> int:
    """Print all that is wrong; return the exit code."""
    code = 0
    for text in [*stale_files(trials), *stale_outputs(trials), *weights_faults(trials), *history_faults(trials)]:
        if text.startswith(NOTE):
            print(text)
        else:
            print(f"report: {text}", file=sys.stderr)
            code = 1
    if not code:
        print("pages, cards, figures, notebooks, weights and ledger agree")
    return code


def stale_files(trials: list[Trial]) -> Iterator[str]:
    """Pages, cards and the texts of figures that are not what the ledger gives. Raises ValueError."""
    for path, text in texts(trials).items():
        if not has_text(path, text):
            yield f"{path.relative_to(ROOT)} is not what the ledger gives: run python -m s5 report"
    for name, text in alternatives(trials).items():
        path = FIGURES / f"{name}.png"
        if not path.exists() or Image.open(path).info.get("Description") != text:
            yield f"figures/{path.name} is not drawn from this ledger: run python -m s5 report --figures"


def stale_outputs(trials: list[Trial]) -> Iterator[str]:
    """Texts, tables and titles of figures that the ledger gives, and no notebook shows."""
    recorded, figures = tables.current_trials("validation", trials), alternatives(trials)
    shown = {
        "the ladder": tables.ladder_table(recorded),
        "all comparisons": tables.comparison_table(recorded),
        "image by image": tables.image_table(recorded, SEED),
        "where it holds": transfer.transfer_table(trials),
    }
    for names in section_names():
        shown[f"the result of {', '.join(names)}"] = tables.ladder_table(recorded, names)
    expected = {
        "the seeds of s5": describe_seeds([trial.mistakes.keys() for trial in CLAIMS["s5"].trials(trials)], IMAGES),
        "the noise": tables.describe_noise(recorded),
        "the precisions": tables.describe_precision(trials),
        "the map": plot_map(map_table(recorded)).text_alternative(),
        "accuracy against size": figures["frontier"],
        "accuracy against time": figures["training_time"],
        **{name: Table(table)._repr_html_() for name, table in shown.items()},
    }
    stored = "".join(map(_outputs, NOTEBOOKS))
    if missing := [name for name, text in expected.items() if text not in stored]:
        yield f"the notebooks do not show what the ledger gives: {', '.join(missing)}. Run them again"


def section_names() -> list[list[str]]:
    """The names of the variants in each section of the experiments notebook."""
    cells = json.loads(EXPERIMENTS.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    return [re.findall(r'"(\w+)"', source) for source in sources if source.startswith("section(")]


def _outputs(notebook: Path) -> str:
    """The texts and tables that are stored in a notebook, and the titles of its figures."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            parts += [*output.get("text", []), *output.get("data", {}).get("text/html", [])]
            parts += [output.get("metadata", {}).get("image/png", {}).get("alt", "")]
    return "".join(parts)


def weights_faults(trials: list[Trial]) -> Iterator[str]:
    """Committed weights that make other mistakes than their line of the ledger."""
    if find_files("mnist") is None:
        yield f"{NOTE}the weights are not checked: that requires MNIST on disk, in $MNIST_ROOT or data/"
        return
    data = load_data(allow_sample=False)
    for name in trained_networks():
        recorded = trial_of_weights(name, trials).mistakes.items()
        found = mistakes(data.eval_labels, predict(load_trained(name), data.eval_images)).items()
        if (images := len({index for index, _ in recorded ^ found})) > ROUNDING:
            yield f"the weights of {name} differ from the ledger in {images} images: save those of the recorded run"


def history_faults(trials: list[Trial]) -> Iterator[str]:
    """Lines that the ledger has lost, and what each claim misses, as git knows it."""
    if git("rev-parse", "--is-shallow-repository") != "false" or git("cat-file", "-t", REWRITTEN) != "commit":
        yield f"{NOTE}the history is not checked: this is a shallow clone, or no git checkout"
        return
    ledger = str(LEDGER.relative_to(ROOT))
    log = "log", "--first-parent", "-m", "--numstat", "--format="
    changes = git(*log, f"{REWRITTEN}..HEAD", "--", ledger).splitlines()
    changes += git("diff", "--numstat", "HEAD", "--", ledger).splitlines()
    if lost := sum(int(change.split()[1]) for change in changes):
        yield f"{lost} lines of {ledger} were changed or removed since {REWRITTEN[:7]}, but it may only grow"
    lines = [parse_line(line) for line in LEDGER.read_bytes().splitlines() if line.strip()]
    for claim in (*CLAIMS.values(), BASELINE, *FASHION_CLAIMS.values()):
        for fault in claim_faults(claim, lines):
            yield f"{NOTE if claim.frozen < STRICT_FROM else ''}claim {claim.name}, {claim.data}: {fault}"


def claim_faults(claim: Claim, lines: list[Trial]) -> Iterator[str]:
    """What a claim misses, by all lines of the ledger, also those of seeds that were trained again."""
    own = claim.trials(lines)
    if missing := {*claim.seeds} - {trial.seed for trial in own}:
        yield f"no trial of seed {_listed(missing)}"
    history = f"\n{git('rev-list', 'HEAD')}"
    if bad := {trial.commit for trial in own if f"\n{trial.commit}" not in history}:
        yield f"trained by commits that are not in the history, or not clean: {_listed(bad)}"
    times = Counter(line.key for line in lines)
    if repeated := {trial.seed for trial in own if times[trial.key] > 1}:
        yield f"trained more than once from seed {_listed(repeated)}"
    tried = select(lines, network=claim.network, recipe=claim.recipe, split="validation", data=claim.data)
    if not any(trial.time[:10] <= claim.frozen for trial in tried):
        yield "its recipe was not tried on the validation split before it was frozen"


def _listed(values: set) -> str:
    return ", ".join(map(str, sorted(values)))
