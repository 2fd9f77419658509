"""The benchmark's timing and its command line."""

import json

import pytest

from s5.benchmarks import bench, epochs, runs, timing
from s5.experiments.claims import KNOWN
from s5.reports.measurements import machine_faults


def test_functions_are_measured_in_turns(capsys):
    calls = []
    functions = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    results = timing.measure_interleaved(functions, 3)
    assert calls == ["a", "b"] * 3
    assert results["a"] == {"median": 3, "low": 1, "high": 5, "all": [1, 3, 5]}


def test_environment_names_machine_versions_and_commit():
    names = {
        "versions",
        "commit",
        "processor",
        "cores",
        "threads",
        "capability",
        "system",
        "time",
        "device",
        "precision",
    }
    assert timing.environment().keys() == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "epoch,horses"], "unknown part horses"),
        (["--repeats", "1"], "must be 2 or more"),
        (["--seeds", "1"], "must be 2 or more"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measurements: `measure` returns the part's name."""
    monkeypatch.setattr(bench, "measure", lambda part, options, records: {"part": part})


def test_measured_parts_are_written_and_the_others_kept(measured, tmp_path):
    path = tmp_path / "speed.json"
    here, other = timing.machine(timing.environment()), {"start": {"part": "another machine's"}}
    own = {"memory": {"peak MB": 1}, "start": {"part": "old"}}
    path.write_text(json.dumps({"Another, 2 cores, AVX2": other, here: own}))
    assert bench.main(["--only", "epoch,start", "--output", str(path)]) == 0
    records = json.loads(path.read_text())
    assert records["Another, 2 cores, AVX2"] == other
    results = records[here]
    assert results["memory"] == {"peak MB": 1}
    assert results["start"]["part"] == "start"
    assert results["epoch"]["environment"]["cores"] >= 1


def test_a_test_accuracy_that_is_measured_again_is_kept():
    results = {"start": {"median": 1}}
    for measured in ({"seeds": [0, 1]}, {"seeds": [20, 21]}, {"seeds": [4, 5]}):
        bench.update(results, "to 99.0%", measured)
    bench.update(results, "start", {"median": 2})
    assert results == {
        "start": {"median": 2},
        "to 99.0%": {"seeds": [4, 5], "earlier": [{"seeds": [0, 1]}, {"seeds": [20, 21]}]},
    }
    assert bench.unused_seed("to 99.0%", {"one machine": results, "another": {}}) == 22
    assert bench.unused_seed("to 99.4%", {"one machine": results}) == 0


def test_a_gpu_has_a_record_of_its_own_beside_that_of_its_processor():
    here = timing.environment()
    name = timing.machine(here | {"device": "cuda: NVIDIA Abacus"})
    assert name == f"{timing.machine(here)}, NVIDIA Abacus"
    record = {name: {"to 99.4%": {"environment": here}}}
    assert list(machine_faults(record, 0)) == []


def test_smoke_run_writes_nothing(measured, tmp_path):
    assert bench.main(["--smoke", "--output", str(tmp_path / "speed.json")]) == 0
    assert not list(tmp_path.iterdir())


def test_damaged_results_are_reported_and_kept(measured, tmp_path, capsys):
    path = tmp_path / "speed.json"
    path.write_text("{")
    assert bench.main(["--output", str(path)]) == 1
    assert "bench: speed.json is not valid JSON" in capsys.readouterr().err
    assert path.read_text() == "{"


def test_smoke_run_measures_the_start():
    options = bench.parse_arguments(["--smoke"])
    assert bench.measure("start", options, {})["main.py --help"]["median"] > 0


def test_every_part_has_a_measurement():
    for part in set(bench.PARTS) - set(bench.ACCURACY_TARGETS):
        assert callable(getattr(epochs if part in bench.IN_EPOCHS else runs, part))
    for _, variant in bench.ACCURACY_TARGETS.values():
        assert variant in KNOWN


def test_a_machine_is_named_by_its_widest_instructions(monkeypatch):
    monkeypatch.setattr(timing.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for native, expected in (("AMX", "AVX512, AMX"), ("", "AVX512")):
        monkeypatch.setattr(timing, "bfloat16_instructions", lambda native=native: native)
        assert timing.capability() == expected
