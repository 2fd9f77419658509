"""The notebooks as they are stored: whole, in order, from a full run, and in agreement with the ledger."""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
from scipy import stats

import report
from helpers import load_mnist
from variants import VARIANTS

REPO = Path(__file__).parent.parent
NOTEBOOKS = ("ERAv4_MNIST_model_S5.ipynb", "ERAv4_MNIST_model_experiments.ipynb")


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(REPO / request.param, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def problems(notebook) -> list[str]:
    """What is wrong with a stored notebook; empty when it was run top to bottom in one go, without a hitch."""
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
    return found


def printed(notebook) -> str:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


def test_stored_whole_and_in_order(notebook):
    assert problems(notebook) == []


def test_short_cells_and_few(notebook):
    assert len(code(notebook)) <= 25
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 20


def test_prose_comes_first(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.accelerator == "GPU"


def test_stored_from_the_full_mnist(notebook):
    text = printed(notebook)
    assert "SAMPLE" not in text
    assert "sample" not in text
    assert "/10000 (" in text


def test_nothing_of_the_machine_is_stored(notebook):
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", nbformat.writes(notebook))


def broken(change):
    notebook = nbformat.read(REPO / NOTEBOOKS[0], as_version=4)
    change(code(notebook))
    return notebook


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda cells: cells[3].update(execution_count=None), "execution counts"),
        (lambda cells: cells[3].update(execution_count=9), "execution counts"),
        (
            lambda cells: cells[2].outputs.append(nbformat.v4.new_output("error", ename="NameError")),
            "cell 3 holds an error: NameError",
        ),
        (
            lambda cells: cells[0].outputs.append(
                nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
            ),
            "cell 1 holds a widget",
        ),
        (
            lambda cells: cells[0].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="oops")),
            "cell 1 holds stderr: oops",
        ),
    ],
)
def test_a_broken_notebook_is_rejected(change, complaint):
    assert any(complaint in problem for problem in problems(broken(change)))


def test_s5_shows_the_run_that_the_ledger_records():
    text = printed(nbformat.read(REPO / NOTEBOOKS[0], as_version=4))
    shown = report.shown_trial(report.current_trials("test"))
    lines = re.findall(r"Epoch +(\d+)/20 .* test loss ([\d.]+) accuracy (\d+)/10000", text)
    recorded = [(str(e["epoch"]), f"{e['test_loss']:.4f}", str(e["test_correct"])) for e in shown["curve"]]
    assert lines == recorded
    assert f"{shown['accuracy']:.2f}% on the test images" in text


def test_experiments_train_every_variant_in_full():
    """A section each, in order: its target as it was written down, and a full run like the recorded ones."""
    notebook = nbformat.read(REPO / NOTEBOOKS[1], as_version=4)
    recorded = report.current_trials("validation")
    trained = []
    for before, cell in itertools.pairwise(notebook.cells):
        if not (section := re.match(r'train\("(\w+)"\)', cell.source)):
            continue
        name = section[1]
        trained.append(name)
        assert f"**Target.** {VARIANTS[name].target}" in before.source, name
        log = "".join(output.get("text", "") for output in cell.outputs)
        correct = [int(n) for n in re.findall(r"Epoch .* validation loss [\d.]+ accuracy (\d+)/10000", log)]
        assert len(correct) == VARIANTS[name].recipe.epochs, name
        accuracies = [trial["accuracy"] for trial in report.select(recorded, variant=name)]
        slack = max(0.3, 5 * stats.tstd(accuracies)) if len(accuracies) > 1 else 0.5
        assert correct[-1] / 100 == pytest.approx(sum(accuracies) / len(accuracies), abs=slack), name
    assert trained == list(VARIANTS)


def test_experiments_hold_todays_tables():
    """nbval compares them too, but only to the end of what pandas prints."""
    notebook = nbformat.read(REPO / NOTEBOOKS[1], as_version=4)
    recorded = report.current_trials("validation")
    tables = [report.summary_table(recorded), report.comparison_table(recorded), report.image_table(recorded, 100)]
    stored = [output.get("data", {}).get("text/html", "") for cell in code(notebook) for output in cell.outputs]
    stored = [re.findall(r"<td>(.*?)</td>", html) for html in stored]
    for table in tables:
        assert [str(value) for value in table.to_numpy().ravel()] in stored


def test_analysis_names_only_figures_that_a_cell_has_computed():
    """Prose is written after the result; a figure in it that no output shows has gone stale, or never was true."""
    notebook = nbformat.read(REPO / NOTEBOOKS[1], as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if "**Analysis.**" in cell.source)
    assert prose.count("**Analysis.**") == len(VARIANTS)
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    computed = printed(notebook) + "\n".join(output.get("data", {}).get("text/html", "") for output in outputs)
    stated = re.findall(r"\d+\.\d+", prose)
    assert stated
    assert [figure for figure in stated if figure not in computed] == []


def test_load_mnist_is_what_the_notebooks_use(notebook):
    assert f"helpers.{load_mnist.__name__}()" in "\n".join(cell.source for cell in notebook.cells)
