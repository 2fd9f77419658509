"""The stored notebooks: complete, in order, from a full run, and in agreement with the ledger."""

import itertools
import re

import nbformat
import pytest
from scipy import stats

from s5.analysis.statistics import CLAIMED_ACCURACY, describe_seeds, wilson_interval
from s5.experiments.ledger import select
from s5.experiments.variants import VARIANTS
from s5.reports import tables
from s5.reports.pages import shown_trial
from s5.reports.sections import result_table
from tests.utils import ROOT, SLUG

NOTEBOOKS = ("ERAv4_MNIST_model_S5.ipynb", "ERAv4_MNIST_model_experiments.ipynb")


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(ROOT / request.param, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
    return found


def test_links_work_in_colab_too(notebook):
    """Colab does not know the folder that a notebook comes from, so that relative links lead nowhere."""
    home = f"https://github.com/{SLUG}/blob/main/"
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(texts)):
        assert target.startswith("https://"), target
        assert not target.startswith(home) or (ROOT / target.removeprefix(home)).exists(), target


def outputs_of(cells) -> list:
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed(notebook) -> str:
    return "\n".join(output.get("text", "") for output in outputs_of(notebook.cells))


def test_stored_complete_and_in_order(notebook):
    assert problems(notebook) == []


def test_cells_are_short_and_few(notebook):
    assert len(code(notebook)) <= 26
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 20


def test_starts_with_prose(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.accelerator == "GPU"


def test_stored_from_the_full_mnist(notebook):
    text = printed(notebook)
    assert "SAMPLE" not in text
    assert "sample" not in text
    assert re.search(
        r"^MNIST: (60,000 training and 10,000 test|50,000 training and 10,000 validation) images", text, re.M
    )


def test_no_path_of_the_machine_is_stored(notebook):
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", nbformat.writes(notebook))


def broken(change):
    notebook = nbformat.read(ROOT / NOTEBOOKS[0], as_version=4)
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


def test_s5_shows_the_recorded_run():
    notebook = nbformat.read(ROOT / NOTEBOOKS[0], as_version=4)
    text = printed(notebook)
    shown = shown_trial(tables.current_trials("test"))
    (rows,) = (rows for cell in notebook.cells if (rows := epochs_of(cell)))
    recorded = [(str(e["epoch"]), f"{e['eval_loss']:.4f}", f"{e['eval_accuracy']:.2f}") for e in shown["curve"]]
    assert [(row["Epoch"], row["Test loss"], row["Test accuracy"]) for row in rows] == recorded
    assert f"{shown['accuracy']:.2f}% on the test images" in text
    assert describe_seeds(select(tables.current_trials("test"), variant="s5")) in text


def section_of(cell) -> str | None:
    """The variant whose section a cell of the experiments notebook shows."""
    match = re.match(r'section\("(\w+)"\)', cell.source)
    return match and match[1]


def test_experiments_show_a_full_run_of_every_variant():
    """One section per variant, in order: its target, and a full run that agrees with the recorded ones."""
    notebook = nbformat.read(ROOT / NOTEBOOKS[1], as_version=4)
    recorded = tables.current_trials("validation")
    trained = []
    for before, cell in itertools.pairwise(notebook.cells):
        if not (name := section_of(cell)):
            continue
        trained.append(name)
        assert f"**Target.** {VARIANTS[name].target}" in before.source, name
        correct = [float(row["Validation accuracy"]) for row in epochs_of(cell)]
        assert len(correct) == VARIANTS[name].recipe.epochs, name
        accuracies = [trial["accuracy"] for trial in select(recorded, variant=name)]
        slack = max(0.3, 5 * stats.tstd(accuracies)) if len(accuracies) > 1 else 0.5
        assert correct[-1] == pytest.approx(sum(accuracies) / len(accuracies), abs=slack), name
    assert trained == list(VARIANTS)


def epochs_of(cell) -> list[dict[str, str]]:
    """The rows of the table of epochs in a cell's outputs."""
    return [row for row in rows_of(cell) if "Epoch" in row]


def cells_of(table) -> list[str]:
    return [str(value) for value in table.to_numpy().ravel()]


def stored_tables(cells) -> list[list[str]]:
    html = [output.get("data", {}).get("text/html", "") for output in outputs_of(cells)]
    return [re.findall(r"<td>(.*?)</td>", table) for table in html]


def test_experiments_show_the_current_tables():
    """All rows at the end, and in each section its own rows."""
    notebook = nbformat.read(ROOT / NOTEBOOKS[1], as_version=4)
    recorded = tables.current_trials("validation")
    comparisons = tables.comparison_table(recorded)
    stored = stored_tables(notebook.cells)
    for table in (tables.summary_table(recorded), comparisons, tables.image_table(recorded, 100)):
        assert cells_of(table) in stored
    for cell in notebook.cells:
        if name := section_of(cell):
            assert cells_of(result_table(recorded, name)) in stored_tables([cell]), name


def unsupported_numbers(prose: str, cells, known: str) -> list[str]:
    """Decimal numbers, and percentages of errors, that are neither in the cells' outputs nor in the `known` text."""
    sources = [
        known,
        *(output.get("text", "") for output in outputs_of(cells)),
        *itertools.chain(*stored_tables(cells)),
    ]
    computed = " ".join(sources)
    stated = re.findall(r"\d+\.\d+|\d+(?=% (?:fewer|more))", prose)
    return [figure for figure in stated if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", computed)]


def test_analysis_states_only_numbers_that_its_section_computes():
    """A number in the prose that no output shows is stale or was never true."""
    notebook = nbformat.read(ROOT / NOTEBOOKS[1], as_version=4)
    analysed = []
    for cell, prose in itertools.pairwise(notebook.cells):
        if prose.source.startswith("**Analysis.**"):
            analysed.append(section_of(cell))
            assert unsupported_numbers(prose.source, [cell], VARIANTS[analysed[-1]].target) == [], analysed[-1]
    assert analysed == list(VARIANTS)
    assert unsupported_numbers(notebook.cells[-1].source, notebook.cells, f"{CLAIMED_ACCURACY}%") == []


def test_an_unsupported_number_is_found():
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text="mean 99.327, -30%")])
    assert unsupported_numbers("99.327, 30% fewer, and 99.4 aimed at", [cell], "99.4%") == []
    assert unsupported_numbers("99.32, 3% fewer, 9.327", [cell], "") == ["99.32", "3", "9.327"]


# --- Outputs that agree with themselves -------------------------------------------------------------------------------

WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def rows_of(cell) -> list[dict[str, str]]:
    """The rows of a cell's stored tables, by column."""
    rows = []
    for output in outputs_of([cell]):
        for table in re.findall(r"<table.*?</table>", output.get("data", {}).get("text/html", ""), re.DOTALL):
            head, _, body = table.partition("</thead>")
            columns = re.findall(r"<th>([^<]+)</th>", head)
            cells = [
                re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
            ]
            rows += [dict(zip(columns, row, strict=True)) for row in cells]
    return rows


def count_faults(text: str) -> list[str]:
    """Percentages and intervals that are not those of the counts beside them."""
    found = []
    result = r"(([\d.]+)% on the [^\n(]*\((\d+)/(\d+), 95% interval ([\d.]+)–([\d.]+)%\))"
    for whole, percent, correct, images, low, high in re.findall(result, text):
        expected = 100 * int(correct) / int(images), *wilson_interval(int(correct), int(images))
        if [percent, low, high] != [f"{value:.2f}" for value in expected]:
            found.append(whole)
    return found


def epoch_faults(cell) -> list[str]:
    """A table of epochs that leaves one out, or has another number of them than its title says."""
    numbers = [int(row["Epoch"]) for row in epochs_of(cell)]
    html = "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
    stated = [int(count) for count in re.findall(r"<summary>All (\d+) epochs", html)]
    found = [] if numbers == list(range(1, len(numbers) + 1)) else [f"epochs {numbers}"]
    return found if not stated or stated == [len(numbers)] else [*found, f"{len(numbers)} epochs, not {stated[0]}"]


def row_faults(cell) -> list[str]:
    """Rows that contradict themselves, or the accuracies of single seeds that the same cell prints."""
    found, printed_seeds = [], {}
    text = "".join(output.get("text", "") for output in cell.outputs)
    lines = re.findall(r"^(\S.*), seed (\d+): ([\d.]+)%", text, re.MULTILINE)
    for name in {name for name, *_ in lines}:
        seeds = [seed for each, seed, _ in lines if each == name]
        other_recipe = any(row.get("Network", "").startswith(f"{name}, ") for row in rows_of(cell))
        if len(seeds) == len(set(seeds)) and not other_recipe:  # else its lines are of two recipes
            printed_seeds[name] = [float(percent) for each, _, percent in lines if each == name]
    for row in rows_of(cell):
        name = row.get("Network", row.get("Variant"))
        stated = row.get("Seeds"), row.get("Mean")
        if None not in stated and (values := printed_seeds.get(name)):
            expected = str(len(values)), f"{sum(values) / len(values):.3f}"
            found += [f"{name}: {stated[0]} seeds, mean {stated[1]}"] if stated != expected else []
        if {"Accepted", "Mistakes", "Accuracy (%)"} <= row.keys():
            accepted, wrong = (int(row[name].replace(",", "")) for name in ("Accepted", "Mistakes"))
            if row["Accuracy (%)"] != f"{100 * (accepted - wrong) / accepted:.3f}":
                found.append(f"{wrong} mistakes of {accepted} are {row['Accuracy (%)']}%")
    return found


def seed_word_faults(prose: str, cell) -> list[str]:
    """ "three seeds" where no row of the cell's tables has so many."""
    counts = {int(row["Seeds"]) for row in rows_of(cell) if row.get("Seeds", "").isdigit()}
    stated = re.findall(rf"\b({'|'.join(WORDS)}|\d+) seeds?\b", prose)
    return [
        f"{word} seeds" for word in stated if counts and WORDS.get(word, word) not in counts | set(map(str, counts))
    ]


def test_outputs_agree_with_themselves(notebook):
    for cell in code(notebook):
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert count_faults(text) + epoch_faults(cell) + row_faults(cell) == []
    for cell, prose in itertools.pairwise(notebook.cells):
        if prose.source.startswith("**Analysis.**"):
            assert seed_word_faults(prose.source, cell) == []


def test_numbers_that_the_checks_look_at_are_stored():
    """So that a change of their form is noticed: the checks above would find nothing."""
    stored = [nbformat.read(ROOT / name, as_version=4) for name in NOTEBOOKS]
    text = "\n".join(map(printed, stored))
    assert re.search(r"\(\d+/\d+, 95% interval [\d.]+–", text)
    assert re.search(r", seed \d+: [\d.]+%", text)
    assert any("Seeds" in row for notebook in stored for cell in code(notebook) for row in rows_of(cell))


EPOCHS = "<details><summary>All 2 epochs</summary><table><thead><tr><th>Epoch</th><th>Loss</th></tr></thead><tbody>"
EPOCHS += "<tr><td>1</td><td>0.5</td></tr><tr><td>2</td><td>0.4</td></tr></tbody></table></details>"
TABLE = "<table><thead><tr><th></th><th>Network</th><th>Seeds</th><th>Mean</th></tr></thead>"
TABLE += "<tbody><tr><th>0</th><td>s5</td><td>2</td><td>98.500</td></tr></tbody></table>"


def cell_with(text: str, table: str):
    outputs = [nbformat.v4.new_output("stream", text=text)]
    return nbformat.v4.new_code_cell(
        outputs=[*outputs, nbformat.v4.new_output("display_data", data={"text/html": table})]
    )


def test_a_contradiction_is_found():
    assert epoch_faults(cell_with("", EPOCHS)) == []
    assert epoch_faults(cell_with("", EPOCHS.replace("<td>1<", "<td>3<"))) == ["epochs [3, 2]"]
    assert epoch_faults(cell_with("", EPOCHS.replace("All 2", "All 20"))) == ["2 epochs, not 20"]
    result = "99.53% on the test images (9953/10000, 95% interval 99.38–99.65%)"
    assert count_faults(result) == []
    for forged in (
        result.replace("9953/", "9943/"),
        result.replace("99.53", "99.63"),
        result.replace("99.38", "99.48"),
    ):
        assert count_faults(forged) == [forged]
    seeds = "s5, seed 0: 98.00%, 9 s\ns5, seed 1: 99.00%, 9 s\n"
    assert row_faults(cell_with(seeds, TABLE)) == []
    assert row_faults(cell_with(seeds, TABLE.replace("98.500", "98.600"))) == ["s5: 2 seeds, mean 98.600"]
    assert row_faults(cell_with(seeds, TABLE.replace("<td>2<", "<td>3<"))) == ["s5: 3 seeds, mean 98.500"]
    assert seed_word_faults("Two? No: two seeds, 2 seeds.", cell_with("", TABLE)) == []
    assert seed_word_faults("From three seeds, and 4 seeds.", cell_with("", TABLE)) == ["three seeds", "4 seeds"]


def test_notebooks_use_the_full_mnist_outside_smoke_mode(notebook):
    source = "\n".join(cell.source for cell in notebook.cells)
    samples = "load_sample()", "load_sample().subset(600, 200)"
    assert any(f"{sample} if SMOKE else load_mnist()" in source for sample in samples)
