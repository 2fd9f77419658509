"""Precision and threads: what is used where."""

import subprocess
import sys
import time

import pytest
import torch

from s5.training import cpu, device
from tests.utils import ROOT, wait_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def asked(monkeypatch):
    """Answers of torch and of the processor's name, to be set; what was found before is forgotten."""

    def answer(machine: str, **answers: bool) -> None:
        device._cpu_multiplies_bfloat16.cache_clear()
        monkeypatch.setattr(device.platform, "machine", lambda: machine)
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda name=name: answers.get(name, False), raising=False)

    yield answer
    device._cpu_multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, "float32"),
        ({"_is_amx_tile_supported": True}, "bfloat16"),
        ({"_is_avx512_bf16_supported": True}, "bfloat16"),
    ],
)
def test_a_processor_uses_bfloat16_if_it_multiplies_it(asked, answers, expected):
    asked("x86_64", **answers)
    assert device.pick_precision("auto", CPU) == expected
    assert device.pick_precision("float32", CPU) == "float32"
    assert device.pick_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(("slower", "expected"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_an_unknown_processor_is_measured(asked, monkeypatch, slower, expected):
    def convolution(images, weight, padding):
        time.sleep(0.005 if images.dtype == getattr(torch, slower) else 0)

    monkeypatch.setattr(torch, "conv2d", convolution)
    asked("aarch64")
    assert device.pick_precision("auto", CPU) == expected


@pytest.mark.parametrize(("major", "expected"), [(7, "float32"), (8, "bfloat16"), (9, "bfloat16")])
def test_a_cuda_card_uses_bfloat16_from_ampere_on(monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    assert device.pick_precision("auto", CUDA) == expected


def test_apples_gpu_uses_float32_and_other_words_are_refused():
    assert device.pick_precision("auto", torch.device("mps")) == "float32"
    with pytest.raises(ValueError, match="precision must be auto, float32, bfloat16, not 'half'"):
        device.pick_precision("half", CPU)


@pytest.mark.parametrize(("idle", "expected"), [(4.0, 4), (3.2, 3), (0.9, 1), (0.0, 1)])
def test_a_thread_for_each_idle_core_and_back_again(monkeypatch, idle, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu, "cores", lambda: 4)
    monkeypatch.setattr(cpu, "idle_cores", lambda: idle)
    with cpu.use_threads(4):
        with cpu.threads_for_idle_cores():
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4


def test_a_chosen_number_of_threads_stays(monkeypatch):
    monkeypatch.setattr(cpu, "cores", lambda: 4)
    monkeypatch.setattr(cpu, "idle_cores", lambda: pytest.fail("looked at the load"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with cpu.use_threads(2), cpu.threads_for_idle_cores():
        assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with cpu.use_threads(4), cpu.threads_for_idle_cores():
        assert torch.get_num_threads() == 4


def test_a_busy_program_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            wait_for(lambda: cpu.idle_cores() < cpu.cores() - 0.5, seconds=30)
        finally:
            busy.kill()


@pytest.mark.parametrize(
    ("variable", "expected"), [("", "5000"), ("OMP_WAIT_POLICY=ACTIVE", "None"), ("GOMP_SPINCOUNT=7", "7")]
)
@pytest.mark.parametrize("module", ["s5.training.mnist", "helpers", "s5.analysis.plots", "s5.experiments.trial"])
def test_how_threads_wait_is_set_before_torch_is_loaded(module, variable, expected):
    script = f"""
import os, sys
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ.update(dict(each.split("=") for each in {variable!r}.split()))

class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)  # loading torch takes a second
sys.meta_path.insert(0, Finder())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
