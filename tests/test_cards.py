"""Model cards: written from the ledger and from measurements."""

import re

import pytest

from s5.experiments.ledger import read_ledger
from s5.inference.trained import trained_networks
from s5.reports import cards


@pytest.fixture(scope="module")
def trials():
    return read_ledger()


@pytest.mark.parametrize("name", trained_networks())
def test_card_is_short_and_says_what_matters(name, trials):
    text = cards.card(name, trials, cards.read_records()[name])
    assert len(text.splitlines()) <= 40
    for part in ("0.1307", "0.3081", "`images`", "`logits`", "NCHW", "interval", "Not for", "cheques"):
        assert part in text, part
    assert re.search(r"mean of (1 seed|([2-9]|\d\d+) seeds)\b", text)
    assert ("not one of these seeds" in text) == (name == "below_20k")


def test_numbers_come_from_the_ledger_and_the_record(trials):
    record = cards.read_records()["s5"]
    fewer = [trial for trial in trials if trial.seed != 9]
    assert "mean of 10 seeds" in cards.card("s5", trials, record)
    assert "mean of 9 seeds" in cards.card("s5", fewer, record)
    assert cards.card("s5", trials, record | {"calibration_error": 9.87}).count("9.87") == 1


def test_what_is_missing_is_reported(trials):
    record = cards.read_records()["s5"]
    for arguments, reason in (
        (("s5", [], record), "no trials of s5"),
        (("s5", trials, {}), "not measured with these weights"),
        (("s5", trials, record | {"weights": "0" * 64}), "not measured with these weights"),
        (("s5", [trial for trial in trials if trial.seed > 0], record), "seed 0, which the ledger does not have"),
    ):
        with pytest.raises(ValueError, match=reason):
            cards.card(*arguments)


def test_damaged_measurements_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "ROBUSTNESS", tmp_path / "robustness.json")
    assert cards.read_records() == {}
    cards.ROBUSTNESS.write_text('{"s5": ')
    with pytest.raises(ValueError, match="robustness.json is not valid JSON"):
        cards.read_records()


def test_only_changed_weights_are_measured(tmp_path, monkeypatch, small):
    path = tmp_path / "robustness.json"
    path.write_bytes(cards.ROBUSTNESS.read_bytes())
    monkeypatch.setattr(cards, "ROBUSTNESS", path)
    monkeypatch.setattr(cards, "load_mnist", lambda **_: pytest.fail("measured again"))
    cards.measure()
    checksums = {name: cards.checksum(name) for name in trained_networks()} | {"s5": "new"}
    monkeypatch.setattr(cards, "checksum", checksums.get)
    monkeypatch.setattr(cards, "load_mnist", lambda **_: small.subset(20, 20))
    cards.measure()
    records = cards.read_records()
    assert (records["s5"]["weights"], records["s5"]["images"]) == ("new", 20)
    assert records["below_20k"]["images"] == 10_000
