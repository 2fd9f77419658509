"""README.md and RESULTS.md agree with the code and with CI; how their sections are written."""

import re
from pathlib import Path

import pandas as pd
import pytest

from s5.__main__ import COMMANDS
from s5.reports import pages
from s5.training.files import README, RESULTS_PAGE
from tests.utils import ROOT, check_links

PAGES = {page: page.read_text(encoding="utf-8") for page in (README, RESULTS_PAGE)}
CI = (ROOT / ".ci" / "run").read_text()


def test_markdown_tables_align_numbers_to_the_right():
    table = pd.DataFrame({"Name": ["a", "b"], "Count": ["1,000", "2"], "Share": ["99.4%", "1%"], "Mixed": ["1", "–"]})
    assert pages.to_markdown(table).splitlines() == [
        "| Name | Count | Share | Mixed |",
        "| --- | ---: | ---: | --- |",
        "| a | 1,000 | 99.4% | 1 |",
        "| b | 2 | 1% | – |",
    ]


def test_fill_replaces_text_between_markers():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- y -->\n<!-- /y -->"
    page = Path("page.md")
    filled = pages.fill({page: text}, {"x": r"new \1", "y": "z"})[page]
    assert filled == text.replace("old", r"new \1").replace("<!-- y -->\n", "<!-- y -->\nz\n")
    with pytest.raises(ValueError, match=r"markers of page.md do not match: y, z"):
        pages.fill({page: text}, {"x": "", "z": ""})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_name_what_exists(page):
    check_links(PAGES[page], page)


def test_quickstart_commands_are_run_by_ci():
    blocks = [block.splitlines() for block in re.findall(r"```bash\n(git clone.*?)```", PAGES[README], re.DOTALL)]
    assert len(blocks) == 2
    for *_, install, command in blocks:
        arguments = install.removeprefix("pip install ")
        assert arguments != install
        assert re.search(rf"^(?:pip install|\$install) .*{re.escape(arguments)}(\s|$)", CI, re.MULTILINE), install
        assert re.search(rf"^(?:\w+=\w+ )?{re.escape(command)}\b", CI, re.MULTILINE), command
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "- run: bash .ci/run" in workflow


def test_commands_on_the_pages_exist():
    for text in PAGES.values():
        assert set(re.findall(r"python3? -m ([\w.]+)", text)) <= {"venv", "s5"}
        assert set(re.findall(r"python -m s5 (\w+)", text)) <= COMMANDS.keys()


def test_every_place_is_in_the_map():
    places = [f"s5/{path.parent.name}" for path in ROOT.glob("s5/*/__init__.py")] + ["helpers.py", "main.py"]
    for place in places:
        assert re.search(rf"\]\({place}/?\)", PAGES[README]), place
