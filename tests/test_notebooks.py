"""The notebooks as they are stored: whole, in order, from a full run, and in agreement with the ledger."""

import re
from pathlib import Path

import nbformat
import pytest

import report
from helpers import load_mnist
from variants import VARIANTS

REPO = Path(__file__).parent.parent
NOTEBOOKS = ("ERAv4_MNIST_model_S5.ipynb", "ERAv4_MNIST_model_experiments.ipynb")


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(REPO / request.param, as_version=4)


def problems(notebook) -> list[str]:
    """What is wrong with a stored notebook; empty when it was run top to bottom in one go, without a hitch."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append(f"execution counts {[cell.execution_count for cell in code]}")
    for number, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} holds an error: {output.ename}")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append(f"cell {number} holds a widget, which GitHub cannot show")
            if output.get("name") == "stderr":
                found.append(f"cell {number} holds stderr: {output.text[:200]}")
    return found


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


def test_stored_whole_and_in_order(notebook):
    assert problems(notebook) == []


def test_short_cells_and_few(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 25
    assert max(len(cell.source.splitlines()) for cell in code) <= 20


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
    change([cell for cell in notebook.cells if cell.cell_type == "code"])
    return notebook


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda code: code[3].update(execution_count=None), "execution counts"),
        (lambda code: code[3].update(execution_count=9), "execution counts"),
        (
            lambda code: code[2].outputs.append(nbformat.v4.new_output("error", ename="NameError")),
            "cell 3 holds an error: NameError",
        ),
        (
            lambda code: code[0].outputs.append(
                nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
            ),
            "cell 1 holds a widget",
        ),
        (
            lambda code: code[0].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="oops")),
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


def test_experiments_show_runs_that_the_ledger_records():
    """Each variant's run in the notebook is the ledger's run of seed 100, epoch by epoch, to the image."""
    notebook = nbformat.read(REPO / NOTEBOOKS[1], as_version=4)
    shown = {}
    for cell in notebook.cells:
        if run := re.search(r'run\(VARIANTS\["(\w+)"\]\)', cell.source):
            log = "".join(output.get("text", "") for output in cell.outputs)
            shown[run[1]] = [int(n) for n in re.findall(r"Epoch .* validation loss [\d.]+ accuracy (\d+)/10000", log)]
    assert len(shown) >= 3
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for name, correct in shown.items():
        assert f"**Target.** {VARIANTS[name].target}" in prose, name
        (trial,) = report.select(report.current_trials("validation"), variant=name, seed=100)
        assert correct == [epoch["test_correct"] for epoch in trial["curve"]], name


def test_analysis_names_only_figures_that_a_cell_has_computed():
    """Prose is written after the result; a figure in it that no output shows has gone stale, or never was true."""
    notebook = nbformat.read(REPO / NOTEBOOKS[1], as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if "**Analysis.**" in cell.source)
    assert prose.count("**Analysis.**") >= 3
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    computed = printed(notebook) + "\n".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    stated = re.findall(r"\d+\.\d+", prose)
    assert stated
    assert [figure for figure in stated if figure not in computed] == []


def test_load_mnist_is_what_the_notebooks_use(notebook):
    assert f"helpers.{load_mnist.__name__}()" in "\n".join(cell.source for cell in notebook.cells)
