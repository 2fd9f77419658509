"""The layout of the project: dependencies, imports between its places, and what installing it leaves behind."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.utils import ROOT

ROOMS = sorted(path.name for path in (ROOT / "s5").iterdir() if (path / "__init__.py").exists())
HELPERS_MAY_IMPORT = {"s5.training"}
MAIN_MAY_IMPORT = {"helpers", "s5.training", "s5.analysis"}


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project_imports(path: Path) -> set[str]:
    """The project's places that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names & {*PACKAGES, "helpers", "main", "tests"}


def test_requirements_and_pyproject_agree(project):
    assert (ROOT / "requirements.txt").read_text().split("\n")[:-1] == project["project"]["dependencies"]


def test_layers_of_packages_hold():
    """The contracts in pyproject.toml. import-linter sees packages only; the two tests below cover single files."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip('requires import-linter: pip install -e ".[test]"')
    result = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_top_level_files_import_downwards_only():
    assert project_imports(ROOT / "helpers.py") <= HELPERS_MAY_IMPORT
    assert project_imports(ROOT / "main.py") <= MAIN_MAY_IMPORT


def test_packages_below_helpers_do_not_import_it():
    for package, forbidden in (("training", {"helpers", "main"}), ("analysis", {"helpers", "main"})):
        for path in (ROOT / package).glob("*.py"):
            assert not project_imports(path) & forbidden, path.name
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            assert "main" not in project_imports(path), path.name


def test_no_test_imports_another():
    for path in (ROOT / "tests").glob("test_*.py"):
        modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in modules if module and module.startswith("tests.test_")], path.name


def test_installing_adds_no_top_level_names(project):
    assert project["tool"]["setuptools"] == {"packages": [], "py-modules": []}
    assert sorted(project["tool"]["ruff"]["lint"]["isort"]["known-first-party"]) == sorted(
        [*PACKAGES, "helpers", "main"]
    )


def test_files_are_short():
    for path in [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))]:
        assert len(path.read_text().splitlines()) <= (300 if path.name == "helpers.py" else 400), path.name
