"""The layout of the project: dependencies, imports between its places, and what installing it leaves behind."""

import re
from pathlib import Path

import pytest

from tests.utils import ROOT


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project_imports(path: Path) -> set[str]:
    """The project's places that a file imports, inside functions too: "helpers", "s5.training", ..."""
    lines = re.findall(r"^ *(?:from|import) (helpers|main|tests|s5(?:\.\w+)?)\b", path.read_text(), re.MULTILINE)
    return set(lines)


def test_requirements_and_pyproject_agree(project):
    assert (ROOT / "requirements.txt").read_text().split("\n")[:-1] == project["project"]["dependencies"]


def test_files_import_downwards_only():
    assert project_imports(ROOT / "helpers.py") <= {"s5.training"}
    assert project_imports(ROOT / "main.py") <= {"helpers", "s5.training", "s5.analysis", "s5.experiments"}
    for path in (ROOT / "s5").rglob("*.py"):
        forbidden = {"main", "tests"} | ({"helpers"} if path.parent.name == "training" else set())
        assert not project_imports(path) & forbidden, path.name


def test_installing_adds_no_top_level_names(project):
    assert project["tool"]["setuptools"] == {"packages": [], "py-modules": []}
