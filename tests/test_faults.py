"""Faults in the middle of a run or a sweep (`fault_checks.py`), each tried once or twice at a random moment.

Many times: `pytest -m faults`, or MNIST_FAULT_ROUNDS=N for N times each.
"""

import json
import os
import sys
from contextlib import nullcontext

import pytest

from s5.benchmarks import fault_checks, faults
from s5.benchmarks.fault_checks import FaultError, ImpossibleError

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="requires a fork server, as on Linux and macOS"),
]


@pytest.fixture(scope="module")
def harness():
    with fault_checks.prepared() as made:
        yield made


@pytest.fixture
def rounds(request) -> int | None:
    """How often each fault is tried; None: as often as for results/faults.json."""
    if "MNIST_FAULT_ROUNDS" in os.environ:
        return int(os.environ["MNIST_FAULT_ROUNDS"])
    return None if "faults" in request.config.getoption("-m") else 1


@pytest.mark.parametrize("check", faults.CHECKS, ids=lambda check: check.__name__)
def test_a_fault_is_survived(harness, check, rounds):
    _, usual = faults.CHECKS[check]
    if rounds and check is fault_checks.busy_cores_under_ray:
        pytest.skip("takes minutes; in the long form")
    for _ in range(rounds or usual):
        try:
            check(harness, 1)
        except ImpossibleError as error:
            pytest.skip(str(error))


def test_what_is_not_survived_is_noticed(harness, capsys, tmp_path):
    """A file that is missing, another or damaged, a process that fails, and a torn or another ledger."""
    run = tmp_path / "run"
    run.mkdir()
    for name, content in harness.run.items():
        (run / name).write_bytes(content)
    harness.check_run(run)
    fault_checks.check_files(tmp_path)
    for name, content in harness.run.items():
        for wrong in (content[:-40], content[:40], b""):
            (run / name).write_bytes(wrong)
            for check in (lambda: fault_checks.check_files(tmp_path), lambda: harness.check_run(run)):
                with pytest.raises(FaultError, match=name):
                    check()
        (run / name).unlink()
        with pytest.raises(FaultError, match="instead of"):
            harness.check_run(run)
        (run / name).write_bytes(content)

    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(harness.ledger[:-40])
    with pytest.raises(FaultError, match="ledger.jsonl is damaged"):
        fault_checks.check_files(tmp_path)
    with pytest.raises(FaultError, match="another ledger"):
        harness.check_ledger(ledger, in_order=False)
    with pytest.raises(FaultError, match="exit code 1"):
        harness.finish("main", ["--smoke", "--output", ledger / "below"], tmp_path / "log")


def test_the_command_records_what_was_tried(tmp_path, monkeypatch, harness, capsys):
    def fails(*_):
        raise FaultError("a reason")

    monkeypatch.setattr(faults, "prepared", lambda: nullcontext(harness))
    monkeypatch.setattr(faults, "CHECKS", {fails: ("bad luck", 3), (lambda *_: None): ("good luck", 2)})
    path = tmp_path / "faults.json"
    assert faults.main(["--output", str(path)]) == 1
    assert json.loads(path.read_text()) == [
        {"fault": "bad luck", "tried": 3, "survived": 0},
        {"fault": "good luck", "tried": 2, "survived": 2},
    ]
    output = capsys.readouterr()
    assert "bad luck: 0 of 3 survived\ngood luck: 2 of 2 survived\n" in output.out
    assert output.err == 3 * "fails: a reason\n"
