"""The cards of the trained networks: written from the ledger and from measurements."""

import pytest

from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger
from s5.inference.trained import trained_networks
from s5.reports import cards
from s5.reports.speed_tables import read_measurements


@pytest.fixture(scope="module")
def trials():
    return read_ledger()


def test_numbers_come_from_the_ledger_and_the_record(trials):
    record = read_measurements(cards.ROBUSTNESS)["s5"]
    fewer = [trial for trial in trials if trial.seed != CLAIMS["s5"].seeds[9]]
    assert "mean of 9 seeds" in cards.card("s5", fewer, record)
    assert cards.card("s5", trials, record | {"calibration_error": 9.87}).count("9.87") == 1
    with pytest.raises(ValueError, match="not measured with these weights"):
        cards.card("s5", trials, record | {"weights": "0" * 64})


def test_only_changed_weights_are_measured(tmp_path, monkeypatch, small):
    path = tmp_path / "robustness.json"
    path.write_bytes(cards.ROBUSTNESS.read_bytes())
    monkeypatch.setattr(cards, "ROBUSTNESS", path)
    monkeypatch.setattr(cards, "load_data", lambda **_: pytest.fail("measured again"))
    cards.measure()
    checksums = {name: cards.checksum(name) for name in trained_networks()} | {"s5": "new"}
    monkeypatch.setattr(cards, "checksum", checksums.get)
    monkeypatch.setattr(cards, "load_data", lambda **_: small.subset(20, 20))
    cards.measure()
    records = read_measurements(cards.ROBUSTNESS)
    assert (records["s5"]["weights"], records["s5"]["images"]) == ("new", 20)
    assert records["below_20k"]["images"] == 10_000
