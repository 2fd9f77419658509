"""The stored notebooks: complete, in order, from a full run on MNIST, and readable by everybody."""

import itertools
import re

import nbformat
import pytest

from s5.experiments.ledger import read_ledger
from s5.experiments.variants import VARIANTS
from s5.reports.pages import shown_trial
from tests.utils import ROOT, check_links

FINAL, EXPERIMENTS = "ERAv4_MNIST_model_S5.ipynb", "ERAv4_MNIST_model_experiments.ipynb"


def read(name: str):
    return nbformat.read(ROOT / name, as_version=4)


@pytest.fixture(params=[FINAL, EXPERIMENTS])
def notebook(request):
    return read(request.param)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    return "\n".join(output.get("text", "") for cell in code(notebook) for output in cell.outputs)


def test_stored_complete_and_in_order_without_errors(notebook):
    """As run top to bottom in one go; GitHub shows no widgets, and every figure has a text alternative."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for number, cell in enumerate(cells, start=1):
        for output in cell.outputs:
            assert output.output_type != "error", number
            assert output.get("name") != "stderr", number
            assert not any("widget" in kind for kind in output.get("data", {})), number
            assert "image/png" not in output.get("data", {}) or output.metadata["image/png"]["alt"], number


def test_starts_with_prose(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.accelerator == "GPU"


def test_links_work_in_colab_too(notebook):
    """Colab does not know the folder that a notebook comes from, so that relative links lead nowhere."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://"), target
    check_links(text)


def test_stored_from_the_full_mnist(notebook):
    text = printed(notebook)
    counts = "(60,000 training and 10,000 test|50,000 training and 10,000 validation)"
    assert re.search(rf"^MNIST: {counts} images", text, re.M)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert re.search(
        r'load_data\("sample"(\).subset\(600, 200\) if SMOKE else load_data\(| if SMOKE else "mnist")\)', source
    )


def test_no_path_of_the_machine_is_stored(notebook):
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", nbformat.writes(notebook))


# --- What the outputs show --------------------------------------------------------------------------------------------


def epochs_of(cell) -> list[dict[str, str]]:
    """The rows of the table of epochs in a cell's outputs, by column."""
    html = "".join(output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))
    tables_of_epochs = [table for table in re.findall(r"<table.*?</table>", html, re.DOTALL) if ">Epoch<" in table]
    columns = re.findall(r"<th[^>]*>([^<]+)</th>", "".join(tables_of_epochs))
    values = iter(re.findall(r"<td[^>]*>(.*?)</td>", "".join(tables_of_epochs)))
    return [dict(zip(columns, row, strict=True)) for row in zip(*[values] * len(columns), strict=True)]


def test_s5_shows_a_whole_run_like_the_recorded_one():
    """The same seed, on a processor that may be of another kind, which rounds differently."""
    notebook, recorded = read(FINAL), shown_trial(read_ledger())
    assert "sample" not in printed(notebook).lower()
    (rows,) = (rows for cell in code(notebook) if (rows := epochs_of(cell)))
    assert [row["Epoch"] for row in rows] == [str(epoch["epoch"]) for epoch in recorded.curve]
    assert f"{rows[-1]['Test accuracy']}% on the test images" in printed(notebook)
    assert abs(float(rows[-1]["Test accuracy"]) - recorded.accuracy) < 0.1


def test_every_variant_is_in_one_section_with_its_guess():
    """What the sections' outputs show is compared with the ledger by `report --check`."""
    found = []
    for before, cell in itertools.pairwise(read(EXPERIMENTS).cells):
        if names := re.findall(r'"(\w+)"', cell.source) if cell.source.startswith("section(") else []:
            found += names
            assert all(VARIANTS[name].target in before.source for name in names), names
    assert found == list(VARIANTS)


def test_no_long_text():
    """A wall of text is not read: something is seen after at most 150 words."""
    for name in (FINAL, EXPERIMENTS):
        for cell in read(name).cells:
            visible = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            assert cell.cell_type == "code" or len(visible.split()) <= 150, cell.source[:80]
