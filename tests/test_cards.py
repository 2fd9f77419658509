"""Model cards: written from the ledger and from measurements, and those in the repository are up to date."""

import json
import re

import pytest

from s5.experiments.ledger import read_ledger
from s5.inference.trained import trained_networks
from s5.reports import cards
from s5.training import mnist


@pytest.fixture(scope="module")
def trials():
    return read_ledger()


def test_committed_cards_are_what_the_code_writes():
    contents = cards.cards()
    assert [path.stem for path in contents] == trained_networks()
    for path, text in contents.items():
        assert path.read_text("utf-8") == text, f"run python -m s5.reports.cards: {path.name} is outdated"
    assert {path for path in cards.TRAINED.glob("*.md")} == set(contents), "a card without weights"


@pytest.mark.parametrize("name", trained_networks())
def test_card_is_short_and_says_what_matters(name):
    text = (cards.TRAINED / f"{name}.md").read_text("utf-8")
    assert len(text.splitlines()) <= 40
    for part in ("0.1307", "0.3081", "`images`", "`logits`", "NCHW", "interval", "Not for", "cheques"):
        assert part in text, part
    assert re.search(r"mean of (1 seed|([2-9]|\d\d+) seeds)\b", text)


def test_numbers_come_from_the_ledger_and_the_record(trials):
    record = cards.read_records()["s5"]
    text = cards.card("s5", trials, record)
    changed = [dict(trial, accuracy=trial["accuracy"] - 0.03) for trial in trials]
    assert cards.card("s5", changed, record) != text
    assert cards.card("s5", trials, record | {"calibration_error": 9.87}).count("9.87") == 1


def test_what_is_missing_is_reported(trials, monkeypatch, capsys):
    record = cards.read_records()["s5"]
    for arguments, reason in (
        (("s5", [], record), "no trials of s5"),
        (("wide", trials, record), "no trials of wide"),
        (("s5", trials, {}), "not measured with these weights"),
        (("s5", trials, record | {"weights": "0" * 64}), "not measured with these weights"),
        (("s5", trials, record | {"correct": 9000}), "90.00%, not the"),
        (("s5", [trial for trial in trials if trial["seed"] > 0], record), "a run that the ledger does not have"),
    ):
        with pytest.raises(cards.CardError, match=reason):
            cards.card(*arguments)
    monkeypatch.setattr(cards, "read_records", dict)
    assert cards.main(["--check"]) == 1
    assert re.match(r"cards: \w+ was not measured", capsys.readouterr().err)


def test_check_reports_an_outdated_card_and_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "s5.md").write_text("old")
    monkeypatch.setattr(cards, "cards", lambda: {tmp_path / "s5.md": "new"})
    assert cards.main(["--check"]) == 1
    assert "s5.md would change" in capsys.readouterr().out
    assert (tmp_path / "s5.md").read_text() == "old"
    assert cards.main([]) == 0
    assert (tmp_path / "s5.md").read_text() == "new"


def test_damaged_measurements_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cards, "ROBUSTNESS", tmp_path / "robustness.json")
    cards.ROBUSTNESS.write_text(json.dumps({"s5": 1})[:-3])
    assert cards.main([]) == 1
    assert "robustness.json cannot be read" in capsys.readouterr().err


def test_unchanged_weights_are_not_measured_again(monkeypatch):
    monkeypatch.setattr(mnist, "load_mnist", lambda **_: pytest.fail("measured again"))
    assert cards.measure(["s5"]) == {"s5": cards.read_records()["s5"]}
