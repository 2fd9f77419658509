"""What `python -m s5 report --check` finds, and that it finds nothing in the project as it is."""

import subprocess
from dataclasses import replace

import pytest

from s5.commands import report
from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger
from s5.reports import check, pages
from s5.training import provenance
from tests.utils import make_trial


@pytest.fixture(scope="module")
def trials():
    return read_ledger()


def test_the_project_is_what_the_ledger_gives(trials):
    assert list(check.stale_files(trials)) == []
    assert list(check.stale_outputs(trials)) == []
    assert [text for text in check.history_faults(trials) if not text.startswith(check.NOTE)] == []


def test_what_another_ledger_gives_is_stale(trials, tmp_path, monkeypatch):
    fewer = [trial for trial in trials if trial.key != CLAIMS["s5"].trials(trials)[9].key]
    monkeypatch.setattr(check, "FIGURES", tmp_path)
    stale = [text.partition(" is not ")[0] for text in check.stale_files(fewer)]
    figures = [f"figures/{name}.png" for name in ("curves", "frontier", "training_time", "transfer", "mistakes")]
    assert stale == ["README.md", "RESULTS.md", "results/weights/s5.md", *figures]
    (stale,) = check.stale_outputs(fewer)
    assert "the seeds of s5" in stale
    assert "the map" not in stale


def test_weights_are_compared_with_their_line(trials, small, monkeypatch):
    monkeypatch.setattr(check, "find_files", lambda data: ["on disk"])
    monkeypatch.setattr(check, "load_data", lambda **_: small)
    monkeypatch.setattr(check, "trained_networks", lambda: ["s5"])
    (text,) = check.weights_faults(trials)
    assert text.startswith("the weights of s5 differ from the ledger in")
    monkeypatch.setattr(check, "find_files", lambda data: None)
    (text,) = check.weights_faults(trials)
    assert text.startswith(f"{check.NOTE}the weights are not checked: that requires MNIST on disk")


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with a ledger of two lines and no claims; since its first commit the ledger only grows."""
    ledger = tmp_path / "ledger.jsonl"
    git(tmp_path, "init", "--quiet")
    ledger.write_text("a\nb\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    for module in (check, provenance):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(check, "LEDGER", ledger)
    monkeypatch.setattr(check, "CLAIMS", {})
    monkeypatch.setattr(check, "REWRITTEN", git(tmp_path, "rev-parse", "HEAD"))
    monkeypatch.setattr(check, "parse_line", lambda line: make_trial())
    return ledger


def test_the_ledger_only_grows(project, monkeypatch):
    for text, lost in (("a\nb\nc\n", None), ("a\nx\nc\n", "1"), ("", "4")):
        project.write_text(text)
        for state in ("changed", "committed"):
            found = [text.split()[0] for text in check.history_faults([]) if not text.startswith(check.NOTE)]
            assert found[:1] == [lost] * (lost is not None), (text, state)
            git(project.parent, "commit", "--quiet", "--allow-empty", "-a", "-m", "next")
    monkeypatch.setattr(check, "REWRITTEN", "0" * 40)
    (text,) = check.history_faults([])
    assert text.startswith(f"{check.NOTE}the history is not checked")


def test_what_a_claim_misses(project):
    commit, claim = git(project.parent, "rev-parse", "HEAD"), replace(CLAIMS["s5"], seeds=(0, 1), frozen="2026-12-24")

    def line(seed, split="test", commit=commit, **changes):
        about = {"data": "mnist", "recipe": claim.recipe.as_dict(), "time": "2026-12-24T00:00:00+00:00"}
        return make_trial(seed, split=split, commit=commit, **about | {"precision": claim.precision} | changes)

    good = [line(100, "validation"), line(0), line(1)]
    assert list(check.claim_faults(claim, good)) == []
    for lines, fault in (
        (good[:2], "no trial of seed 1"),
        ([*good[:2], line(1, commit=f"{commit}-dirty")], "commits that are not in the history, or not clean"),
        ([*good, line(0, precision="bfloat16")], "trained more than once from seed 0"),
        (good[1:], "not tried on the validation split"),
        ([line(100, "validation", time="2026-12-25T00:00:00+00:00"), *good[1:]], "not tried on the validation split"),
    ):
        (found,) = check.claim_faults(claim, lines)
        assert fault in found


def test_new_claims_must_keep_the_rules_and_old_ones_are_listed(project, monkeypatch):
    for frozen, is_note in (("2026-11-30", True), ("2026-12-01", False)):
        monkeypatch.setattr(check, "CLAIMS", {"s5": replace(CLAIMS["s5"], seeds=(0,), frozen=frozen)})
        (found,) = (text for text in check.history_faults([]) if "claim s5, mnist: no trial of seed 0" in text)
        assert found.startswith(check.NOTE) == is_note


def test_the_command_ends_with_an_error_if_anything_is_wrong(monkeypatch, capsys):
    for name in ("stale_files", "stale_outputs", "history_faults"):
        monkeypatch.setattr(check, name, lambda trials: [])
    for text, code in ((f"{check.NOTE}not checked", 0), ("one", 1)):
        monkeypatch.setattr(check, "weights_faults", lambda trials, text=text: [text])
        assert report.main(["--check"]) == code
        captured = capsys.readouterr()
        assert captured.out.startswith("note: not checked") == (not code)
        assert captured.err == "report: one\n" * code


def test_the_command_writes_what_is_stale(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "texts", lambda trials: {page: "text"})
    for answer in ("trials: page.md", "up to date"):
        assert report.main([]) == 0
        assert answer in capsys.readouterr().out
    assert page.read_text() == "text"
