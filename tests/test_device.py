"""Precision and threads: what is used where."""

import os
import subprocess
import sys

import pytest
import torch

from s5.training import device
from tests.utils import ROOT, wait_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device must be auto, cpu, cuda or mps, not 'tpu'"),
        ("", "device must be auto"),
        ("cpu:x", "no valid device"),
        pytest.param("cuda", "finds no CUDA device", marks=pytest.mark.skipif("torch.cuda.is_available()")),
    ],
)
def test_a_device_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        device.pick_device(name)


@pytest.mark.parametrize("native", [None, "_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_a_processor_uses_bfloat16_if_it_multiplies_it(monkeypatch, native):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == native, raising=False)
    assert device.pick_precision("auto", CPU) == ("bfloat16" if native else "float32")
    assert device.pick_precision("auto", torch.device("mps")) == "float32"
    for precision in ("float32", "bfloat16"):
        assert device.pick_precision(precision, CPU) == precision
    with pytest.raises(ValueError, match="precision must be auto, float32, bfloat16, not 'half'"):
        device.pick_precision("half", CPU)


@pytest.mark.parametrize(("major", "expected"), [(7, "float32"), (8, "bfloat16"), (9, "bfloat16")])
def test_a_cuda_card_uses_bfloat16_from_ampere_on(monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    assert device.pick_precision("auto", CUDA) == expected


@pytest.mark.parametrize(
    ("idle", "set_to", "variable", "expected"),
    [
        (4.0, 4, None, (4, "one per core")),
        (3.2, 4, None, (3, "other programs use the other cores")),
        (0.0, 4, None, (1, "other programs use the other cores")),
        (0.0, 2, None, (2, "as torch is set")),
        (0.0, 4, "4", (4, "as in OMP_NUM_THREADS")),
    ],
)
def test_a_command_that_is_told_no_number_of_threads_uses_one_per_idle_core(
    monkeypatch, idle, set_to, variable, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(device, "cores", lambda: 4)
    monkeypatch.setattr(device, "idle_cores", lambda: idle)
    with device.use_threads(set_to):
        assert device.pick_threads() == expected


def test_a_busy_program_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            wait_for(lambda: device.idle_cores() < device.cores() - 0.5, seconds=30)
        finally:
            busy.kill()


@pytest.mark.parametrize(("given", "expected"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_commands_set_how_threads_wait_before_torch_is_loaded(given, expected):
    script = "import os, sys, main; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", expected]
