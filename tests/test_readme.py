"""The README says what the code, the ledger and CI say."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

import helpers
from experiments import report
from experiments.ledger import read_ledger
from training.checkpoint import load_weights
from training.files import WEIGHTS
from training.mnist import load_mnist, load_sample

REPO = Path(__file__).parent.parent
TEXT = (REPO / "README.md").read_text(encoding="utf-8")
SLUG = "Shankarganesh127/TSAI_ERAv4_MNIST_model_S5"
CI = (REPO / ".ci" / "run").read_text()


def test_tables_are_drawn_from_the_ledger():
    fresh = report.fill_markers(TEXT, report.readme_sections(read_ledger()))
    assert fresh == TEXT, "stale: run python report.py"


def test_every_accuracy_stands_between_markers():
    """A figure typed by hand is one that nobody updates; the goal itself may be named."""
    outside = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", TEXT, flags=re.DOTALL)
    assert set(re.findall(r"\b9\d\.\d+", outside)) <= {"99.4"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_name_what_exists(target):
    if not target.startswith("http"):
        assert (REPO / target).exists()
    elif "colab.research.google.com/github" in target:
        slug, file = re.fullmatch(
            r"https://colab\.research\.google\.com/github/(\w+/\w+)/blob/main/(.+)", target
        ).groups()
        assert slug == SLUG
        assert (REPO / file).exists()
    elif "actions/workflows" in target:
        file = re.search(r"actions/workflows/([\w.]+)", target)[1]
        assert (REPO / ".github" / "workflows" / file).exists()
    else:
        known = (f"https://github.com/{SLUG}", "https://colab.research.google.com/assets/", "https://docs.ray.io")
        assert target.startswith(known)


def test_the_first_commands_are_the_ones_that_ci_runs():
    one_liners = [line for line in TEXT.splitlines() if line.startswith("git clone")]
    assert len(one_liners) == 2
    for line in one_liners:
        *_, install, last = line.split(" && ")
        arguments = install.removeprefix("pip install ")
        assert arguments != install
        assert re.search(rf"^pip install .*{re.escape(arguments)}$", CI, re.MULTILINE), install
        assert re.search(rf"^(?:\w+=\w+ )?{re.escape(last)}\b", CI, re.MULTILINE), last
    workflow = (REPO / ".github" / "workflows" / "ci.yml").read_text()
    assert "- run: bash .ci/run" in workflow


def test_every_file_of_the_project_is_listed():
    for module in REPO.glob("*.py"):
        if module.name != "conftest.py":
            assert f"]({module.name})" in TEXT, module.name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_requirements_and_pyproject_agree():
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert (REPO / "requirements.txt").read_text().split("\n")[:-1] == project["project"]["dependencies"]
    modules = sorted(path.stem for path in REPO.glob("*.py") if path.name != "conftest.py")
    assert project["tool"]["setuptools"]["py-modules"] == modules
    assert project["tool"]["ruff"]["lint"]["isort"]["known-first-party"] == modules


def test_committed_weights_are_small_and_read_digits():
    assert WEIGHTS.stat().st_size < 80_000
    sample = load_sample()
    model = load_weights(helpers.Net(), WEIGHTS)
    _, correct = helpers.evaluate(model, sample.eval_images, sample.eval_labels)
    assert correct >= 985


@pytest.mark.skipif("MNIST_ROOT" not in os.environ, reason="set MNIST_ROOT to check the weights on the full MNIST")
def test_committed_weights_make_the_recorded_mistakes():
    data = load_mnist(allow_sample=False)
    probabilities = helpers.predict(load_weights(helpers.Net(), WEIGHTS), data.eval_images)
    shown = report.shown_trial(report.current_trials("test"))
    recorded = {int(index): digit for index, digit in shown["mistakes"].items()}
    ours = {int(index): digit for index, digit in helpers.mistakes(data.eval_labels, probabilities).items()}
    # Another processor rounds otherwise: an image that hangs in the balance may fall to the other side.
    top = probabilities.topk(2).values
    balanced = set(torch.nonzero(top[:, 0] - top[:, 1] < 1e-3).flatten().tolist())
    differing = {index for index in ours.keys() | recorded.keys() if ours.get(index) != recorded.get(index)}
    assert differing <= balanced
    assert len(ours) == pytest.approx(100 * (100 - shown["accuracy"]), abs=len(balanced) + 0.5)
