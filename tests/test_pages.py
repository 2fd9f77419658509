"""README.md and RESULTS.md agree with the code, the ledger and CI."""

import re

import pytest
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from s5.analysis.style import DIGEST, is_drawn_from, save_figure
from s5.experiments.ledger import read_ledger
from s5.reports import audit, pages, prose
from s5.reports import write as report
from s5.training.files import README, RESULTS_PAGE
from tests.utils import ROOT, SLUG

PAGES = {page: page.read_text(encoding="utf-8") for page in (README, RESULTS_PAGE)}
CI = (ROOT / ".ci" / "run").read_text()


def test_tables_are_up_to_date():
    assert pages.fill(PAGES, pages.sections(read_ledger())) == PAGES, "stale: run python -m s5.reports.write"


def numbers(text: str) -> list[re.Match]:
    """The numbers of a page's prose."""
    return list(prose.NUMBER.finditer(prose.NOT_PROSE.sub(lambda match: " " * len(match[0]), text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_of_the_prose_has_a_source(page):
    """A number typed by hand is not updated: each is named in `prose.STATEMENTS`, and another in its place is wrong."""
    trials, text = read_ledger(), pages.MARKER.sub("", PAGES[page])
    assert list(prose.prose_faults(text, trials)) == []
    for match in numbers(text):
        forged = f"{text[: match.start()]}1{text[match.start() :]}"
        assert list(prose.prose_faults(forged, trials)), match


def test_no_phrase_is_left_over():
    """Each phrase of `prose.STATEMENTS` is on one of the pages."""
    text = "\n".join(prose.NOT_PROSE.sub("", pages.MARKER.sub("", text)) for text in PAGES.values())
    unused = [phrase for phrase in prose.STATEMENTS if not re.search(phrase.replace(" ", r"\s+"), text)]
    assert unused == []


def test_numbers_in_words_code_and_links_are_no_prose():
    text = "int8 on x86-64 `--epochs 5` [all](RESULTS.md#4) 3×3, 0–9, 10,000. 99.4% and -0.5"
    assert [match[0].rstrip(",.") for match in numbers(text)] == ["3", "3", "0", "9", "10,000", "99.4", "0.5"]


@pytest.mark.parametrize("figure", sorted((ROOT / "figures").glob("*.png")), ids=lambda path: path.name)
def test_a_figure_is_drawn_from_current_data(figure):
    data, command = audit.expected_figures(read_ledger())[figure.name]
    assert is_drawn_from(figure, data), command


def test_a_stale_or_changed_figure_is_found(tmp_path):
    path, data = tmp_path / "figure.png", {"curve": [1.5, 2.5]}
    save_figure(Figure(figsize=(1, 1)), path, data)
    assert is_drawn_from(path, data)
    assert not is_drawn_from(path, {"curve": [1.5, 2.4]})
    with Image.open(path) as image:
        about = PngInfo()
        about.add_text(DIGEST, image.text[DIGEST])
        image.putpixel((3, 3), (0, 0, 0, 255))
        image.save(path, pnginfo=about)
    assert not is_drawn_from(path, data)
    save_figure(Figure(figsize=(1, 1)), path)
    assert not is_drawn_from(path, data)


def test_a_report_is_not_written_from_sources_that_contradict_themselves(monkeypatch, capsys):
    monkeypatch.setattr(audit, "source_problems", lambda: ["ledger.jsonl, line 3: accuracy is 99.9, but"])
    monkeypatch.setattr(pages, "fill", lambda *_: pytest.fail("pages are written"))
    assert report.main([]) == 1
    assert capsys.readouterr().err == "report: ledger.jsonl, line 3: accuracy is 99.9, but\n"


def test_a_check_names_every_problem(monkeypatch, capsys):
    monkeypatch.setattr(audit, "problems", lambda: ["one", "two"])
    assert report.main(["--check"]) == 1
    assert capsys.readouterr().err == "report: one\nreport: two\n"
    monkeypatch.setattr(audit, "problems", list)
    assert report.main(["--check"]) == 0
    assert "no contradiction" in capsys.readouterr().out


def test_readme_is_short():
    assert len(PAGES[README].splitlines()) <= 195
    assert len(PAGES[README].encode()) <= 10_240


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "target"),
    [(page, target) for page, text in PAGES.items() for target in sorted(set(re.findall(r"\]\(([^)]+)\)", text)))],
    ids=lambda value: getattr(value, "name", value),
)
def test_links_name_what_exists(page, target):
    if not target.startswith("http"):
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists()
        assert not anchor or anchor in anchors(PAGES[ROOT / file if file else page])
    elif "colab.research.google.com/github" in target:
        slug, file = re.fullmatch(
            r"https://colab\.research\.google\.com/github/(\w+/\w+)/blob/main/(.+)", target
        ).groups()
        assert slug == SLUG
        assert (ROOT / file).exists()
    elif "actions/workflows" in target:
        file = re.search(r"actions/workflows/([\w.]+)", target)[1]
        assert (ROOT / ".github" / "workflows" / file).exists()
    else:
        colab, ray = "https://colab.research.google.com/assets/", "https://docs.ray.io"
        bitnet = "https://github.com/cpldcpu/BitNetMCU/blob/main/docs/documentation_cnn.md"
        assert target.startswith((f"https://github.com/{SLUG}", colab, ray, bitnet))


def test_quickstart_commands_are_run_by_ci():
    blocks = [block.splitlines() for block in re.findall(r"```bash\n(git clone.*?)```", PAGES[README], re.DOTALL)]
    assert len(blocks) == 2
    for *_, install, command in blocks:
        arguments = install.removeprefix("pip install ")
        assert arguments != install
        assert re.search(rf"^pip install .*{re.escape(arguments)}$", CI, re.MULTILINE), install
        assert re.search(rf"^(?:\w+=\w+ )?{re.escape(command)}\b", CI, re.MULTILINE), command
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "- run: bash .ci/run" in workflow


def test_commands_in_the_readme_exist():
    """Every `python -m PLACE` names a module with a command line."""
    for text in PAGES.values():
        for module in re.findall(r"python -m ([\w.]+)", text):
            if module != "venv":
                assert '__name__ == "__main__"' in (ROOT / f"{module.replace('.', '/')}.py").read_text(), module


def test_every_place_is_in_the_map():
    places = [path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    places += [path.name for path in ROOT.glob("*.py") if path.name != "conftest.py"]
    for place in places:
        assert f"]({place})" in PAGES[README], place
