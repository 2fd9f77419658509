"""The benchmark: its timing, its command line and its records."""

import json
import re

import pytest

from s5.benchmarks import bench, timing
from s5.commands import bench as command


def test_functions_are_measured_in_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    results = timing.measure_interleaved(functions, 3)
    assert calls == ["a", "b"] * 3
    assert results["a"] == {"median": 3, "low": 1, "high": 5, "all": [1, 3, 5]}


def test_a_machine_is_named_by_processor_cores_instructions_and_gpu():
    here = timing.environment()
    assert timing.machine(here) == f"{here['processor']}, {here['cores']} cores, {here['capability']}"
    assert timing.machine(here | {"device": "cuda: Abacus"}) == f"{timing.machine(here)}, Abacus"


def test_bad_arguments_are_reported_in_one_line(capsys):
    for arguments, message in ((["horses"], "unknown part horses"), (["--repeats", "1"], "must be 2 or more")):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 2
        assert re.fullmatch(f"bench: .*{message}.*\n", capsys.readouterr().err)


def test_the_command_names_every_part():
    assert {*bench.PARTS, bench.ACCURACY} == set(command.PARTS)


@pytest.fixture
def measured(monkeypatch):
    """Replaces every measurement: a part gives its name, a time to accuracy its seeds."""
    for name in bench.PARTS:
        monkeypatch.setitem(bench.PARTS, name, lambda repeats, smoke, name=name: {"part": name})
    monkeypatch.setattr(bench, "time_to_accuracy", lambda variant, target, seeds, *_: {"seeds": seeds})


def test_measured_parts_are_written_and_the_others_kept(measured, tmp_path):
    path = tmp_path / "speed.json"
    here, other = timing.machine(timing.environment()), {"small": {"part": "another machine's"}}
    path.write_text(json.dumps({"Another": other, here: {"small": {"part": "kept"}, "epoch": {"part": "old"}}}))
    assert command.main(["epoch", "inference", "--output", str(path)]) == 0
    records = json.loads(path.read_text())
    assert records["Another"] == other
    assert [part["part"] for part in records[here].values()] == ["kept", "epoch", "inference"]
    assert records[here]["epoch"]["environment"]["cores"] >= 1


def test_every_time_to_accuracy_takes_fresh_seeds_and_stays_in_the_record(measured, tmp_path):
    path = tmp_path / "speed.json"
    for _ in range(3):
        assert command.main([bench.ACCURACY, "--seeds", "2", "--output", str(path)]) == 0
    (record,) = json.loads(path.read_text()).values()
    last = record[bench.ACCURACY]
    assert [run["seeds"] for run in (*last["earlier"], last)] == [[0, 1], [2, 3], [4, 5]]


def test_a_smoke_run_writes_nothing_and_a_damaged_file_is_reported_and_kept(measured, tmp_path, capsys):
    path = tmp_path / "speed.json"
    assert command.main(["--smoke", "--output", str(path)]) == 0
    assert not path.exists()
    path.write_text("{")
    assert command.main(["--output", str(path)]) == 1
    assert f"bench: {path} is not valid JSON" in capsys.readouterr().err
    assert path.read_text() == "{"
