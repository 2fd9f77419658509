"""Precision and threads: what is used where."""

import os
import subprocess
import sys

import psutil
import pytest
import torch

from s5.training import device
from tests.utils import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=rf"device must be auto or one that torch finds here, .*cpu, not '{name}'"):
        device.pick_device(name)


@pytest.mark.parametrize("native", [None, "_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_bfloat16_is_used_where_it_is_multiplied_natively(monkeypatch, native):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == native, raising=False)
    assert device.pick_precision("auto", CPU) == ("bfloat16" if native else "float32")
    assert device.pick_precision("auto", torch.device("mps")) == "float32"
    assert device.pick_precision("float32", CPU) == "float32"
    for major, expected in ((7, "float32"), (8, "bfloat16")):  # Volta and Ampere
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, major=major: (major, 0))
        assert device.pick_precision("auto", CUDA) == expected
    with pytest.raises(ValueError, match="precision must be auto, float32, bfloat16, not 'half'"):
        device.pick_precision("half", CPU)


def test_a_command_that_is_told_no_number_of_threads_uses_one_per_idle_core(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    busy = "other programs use the other cores"
    for percent, expected in (([0, 0, 0, 0], (4, "one per core")), ([0, 20, 60, 0], (3, busy)), ([100] * 4, (1, busy))):
        monkeypatch.setattr(psutil, "cpu_percent", lambda *_, percent=percent, **options: percent)
        with device.use_threads(4):
            assert device.pick_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with device.use_threads(4):
        assert device.pick_threads() == (4, "as in OMP_NUM_THREADS")


def test_commands_set_how_threads_wait_before_torch_is_loaded():
    script = "import os, sys, main; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    settings = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "5000"]
