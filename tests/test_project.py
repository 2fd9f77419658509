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
    """The project's places that a file imports, inside functions too: "helpers", "s5.training", ..."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    names = {
        ".".join(module.split(".")[:2]) if module.startswith("s5.") else module.partition(".")[0] for module in modules
    }
    return {name for name in names if name.startswith("s5") or name in ("helpers", "main", "tests")}


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


def test_rooms_below_helpers_do_not_import_it():
    for room in ROOMS:
        for path in (ROOT / "s5" / room).glob("*.py"):
            forbidden = {"helpers", "main", "tests"} if room == "training" else {"main", "tests"}
            assert not project_imports(path) & forbidden, path.name


def test_no_test_imports_another():
    for path in (ROOT / "tests").glob("test_*.py"):
        modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in modules if module and module.startswith("tests.test_")], path.name


def test_installing_adds_no_top_level_names(project):
    assert project["tool"]["setuptools"] == {"packages": [], "py-modules": []}
