"""The stored notebooks: complete, in order, from a full run on MNIST, and readable by everybody."""

import ast
import itertools
import re
import sys

import nbformat
import pytest
from scipy import stats

from s5.analysis.statistics import describe_seeds
from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger, select
from s5.experiments.variants import VARIANTS
from s5.reports import tables
from s5.reports.pages import shown_trial
from tests.utils import ROOT, SLUG

FINAL, EXPERIMENTS = "ERAv4_MNIST_model_S5.ipynb", "ERAv4_MNIST_model_experiments.ipynb"
MAY_IMPORT = {*sys.stdlib_module_names, "IPython", "helpers", "pandas", "s5", "torch"}


def read(name: str):
    return nbformat.read(ROOT / name, as_version=4)


@pytest.fixture(params=[FINAL, EXPERIMENTS])
def notebook(request):
    return read(request.param)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    return "\n".join(output.get("text", "") for cell in code(notebook) for output in cell.outputs)


def problems(notebook) -> list[str]:
    """What is wrong with a stored notebook; empty if it was run top to bottom in one go, without errors."""
    cells, found = code(notebook), []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append(f"execution counts {[cell.execution_count for cell in cells]}")
    for number, cell in enumerate(cells, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} holds an error: {output.ename}")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append(f"cell {number} holds a widget, which GitHub cannot show")
            if output.get("name") == "stderr":
                found.append(f"cell {number} holds stderr: {output.text[:200]}")
            if "image/png" in output.get("data", {}) and not output.metadata.get("image/png", {}).get("alt"):
                found.append(f"cell {number} holds a figure without a text alternative")
    return found


def test_stored_complete_and_in_order(notebook):
    assert problems(notebook) == []


def with_output(kind: str, **content):
    return lambda cells: cells[2].outputs.append(nbformat.v4.new_output(kind, **content))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda cells: cells[3].update(execution_count=None), "execution counts"),
        (with_output("error", ename="NameError"), "cell 3 holds an error: NameError"),
        (with_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}), "cell 3 holds a widget"),
        (with_output("stream", name="stderr", text="oops"), "cell 3 holds stderr: oops"),
        (with_output("display_data", data={"image/png": ""}), "cell 3 holds a figure without a text alternative"),
    ],
)
def test_a_broken_notebook_is_rejected(change, complaint):
    notebook = read(FINAL)
    change(code(notebook))
    assert any(complaint in problem for problem in problems(notebook))


def test_imports_are_of_the_project_and_what_it_requires(notebook):
    for cell in code(notebook):
        source = re.sub(r"^(\s*)[!%].*", r"\1pass", cell.source, flags=re.MULTILINE)  # commands of the shell
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= MAY_IMPORT


def test_starts_with_prose(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.accelerator == "GPU"


def test_links_work_in_colab_too(notebook):
    """Colab does not know the folder that a notebook comes from, so that relative links lead nowhere."""
    home = f"https://github.com/{SLUG}/blob/main/"
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(texts)):
        assert target.startswith("https://"), target
        assert not target.startswith(home) or (ROOT / target.removeprefix(home)).exists(), target


def test_stored_from_the_full_mnist(notebook):
    text = printed(notebook)
    assert "sample" not in text.lower()
    counts = "(60,000 training and 10,000 test|50,000 training and 10,000 validation)"
    assert re.search(rf"^MNIST: {counts} images", text, re.M)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert re.search(r"load_sample\(\)(\.subset\(600, 200\))? if SMOKE else load_mnist\(\)", source)


def test_no_path_of_the_machine_is_stored(notebook):
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", nbformat.writes(notebook))


# --- What the outputs show --------------------------------------------------------------------------------------------


def epochs_of(cell) -> list[dict[str, str]]:
    """The rows of the table of epochs in a cell's outputs, by column."""
    rows = []
    for output in cell.get("outputs", []):
        for table in re.findall(r"<table.*?</table>", output.get("data", {}).get("text/html", ""), re.DOTALL):
            columns = re.findall(r"<th>([^<]+)</th>", table)
            if "Epoch" in columns:
                body = table.partition("</thead>")[2]
                rows += [
                    dict(zip(columns, re.findall(r"<td>(.*?)</td>", row), strict=True))
                    for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
                ]
    return rows


def test_s5_shows_the_recorded_run():
    notebook, trials = read(FINAL), read_ledger()
    shown = shown_trial(tables.current_trials("test", trials))
    (rows,) = (rows for cell in code(notebook) if (rows := epochs_of(cell)))
    recorded = [(str(e["epoch"]), f"{e['eval_loss']:.4f}", f"{e['eval_accuracy']:.2f}") for e in shown.curve]
    assert [(row["Epoch"], row["Test loss"], row["Test accuracy"]) for row in rows] == recorded
    assert f"{shown.accuracy:.2f}% on the test images" in printed(notebook)
    assert describe_seeds([trial.accuracy for trial in CLAIMS["s5"].trials(trials)]) in printed(notebook)


def test_experiments_show_a_full_run_of_every_variant():
    """One section per variant, in order: its target, and a full run that agrees with the recorded ones."""
    recorded = tables.current_trials("validation")
    trained = []
    for before, cell in itertools.pairwise(read(EXPERIMENTS).cells):
        if not (match := re.match(r'section\("(\w+)"\)', cell.source)):
            continue
        name = match[1]
        trained.append(name)
        assert f"**Target.** {VARIANTS[name].target}" in before.source, name
        correct = [float(row["Validation accuracy"]) for row in epochs_of(cell)]
        assert len(correct) == VARIANTS[name].recipe.epochs, name
        accuracies = [trial.accuracy for trial in select(recorded, variant=name)]
        slack = max(0.3, 5 * stats.tstd(accuracies)) if len(accuracies) > 1 else 0.5
        assert correct[-1] == pytest.approx(sum(accuracies) / len(accuracies), abs=slack), name
    assert trained == list(VARIANTS)
