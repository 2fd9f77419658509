"""The exported folder in makers' hands: the example, the sketch, drawings, and emulated chips."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from s5.deployment import emulator
from s5.deployment.c_code import COMPILER, STACK, WARNINGS, activation_bytes, instructions, write_c
from s5.deployment.quantization import quantize
from s5.inference import preprocessing
from s5.inference.trained import load_trained, trained_networks

AVR = "avr-gcc"
ARDUINO = """
#include <cstdint>
#include <cstdio>
void delay(int) {}
struct {
    void begin(int) {}
    void println(const char *text) { puts(text); }
    void println(int value) { printf("%d\\n", value); }
    size_t readBytes(char *bytes, size_t count) { return fread(bytes, 1, count, stdin); }
} Serial;
#include SKETCH
int main() { setup(); loop(); }
"""


def needs(*programs: str):
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"requires {', '.join(missing)}")


def run(*command, **options) -> str:
    return subprocess.run(
        [*map(str, command)], check=True, capture_output=True, text=True, timeout=100, **options
    ).stdout


@pytest.fixture
def folder(sample, tmp_path):
    write_c(quantize(load_trained("below_500"), sample.train_images[:50]), "net", tmp_path, sample.eval_images[:3])
    return tmp_path


@needs("make", "cc")
def test_example_passes_and_fails(folder):
    assert run("make", cwd=folder).endswith("PASS\n")
    text = (folder / "example.c").read_text()
    wrong = re.sub(r"( logits\[30\] = {\s+)", r"\g<1>1 + ", text)
    assert wrong != text
    (folder / "example.c").write_text(wrong)
    result = subprocess.run(["make"], cwd=folder, capture_output=True, text=True)
    assert result.stdout.endswith("FAIL: the answer to image 1 differs\n")
    assert result.returncode


@needs("cc", "c++")
def test_sketch_passes_and_reads_a_digit(folder, sample):
    (folder / "arduino.cpp").write_text(ARDUINO)
    for file in ("net.c", "example.c"):
        run("cc", *WARNINGS, "-DARDUINO=1", "-c", file, cwd=folder)
    run("c++", '-DSKETCH="net.ino"', "-o", "sketch", "arduino.cpp", "net.o", "example.o", cwd=folder)
    result = subprocess.run([folder / "sketch"], input=sample.eval_images[5].numpy().tobytes(), capture_output=True)
    assert result.stdout.split() == [b"PASS", str(int(sample.eval_labels[5])).encode()]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")
def test_drawings_become_images_as_in_python(folder, sample, monkeypatch):
    run(COMPILER, *WARNINGS, "-shared", "-fPIC", "-fsanitize=undefined", "-o", "drawing.so", "drawing.c", cwd=folder)
    convert = ctypes.CDLL(str(folder / "drawing.so")).drawing_to_image
    for step in ("to_grey", "cut_out_sheet"):
        monkeypatch.setattr(preprocessing, step, lambda image: image)
    monkeypatch.setattr(preprocessing, "find_ink", lambda ink: ink / 255)
    found = np.zeros((28, 28), np.uint8)

    def converted(drawing: np.ndarray) -> int:
        source, target = (array.ctypes.data_as(ctypes.c_void_p) for array in (drawing, found))
        return convert(source, drawing.shape[1], drawing.shape[0], target)

    sizes = [(200, 150), (56, 300), (240, 320), (64, 64), (320, 30)]
    for image, size in zip(sample.eval_images[:20].numpy(), 4 * sizes, strict=True):
        drawing = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        expected = preprocessing.prepare(drawing).numpy().astype(int)
        assert converted(drawing) == 1
        difference = abs(found - expected)
        assert difference.max() <= 10  # a row that touches a pixel of the box with its edge counts here or there
        assert difference.sum() <= 40
    dot = np.zeros((300, 300), np.uint8)
    assert converted(dot) == 0
    assert not found.any()
    dot[0, 299] = 1
    assert converted(dot) == 1
    assert found.max() == 255


@pytest.mark.skipif(not emulator.is_available(), reason=f"requires {' and '.join(emulator.PROGRAMS)}")
@pytest.mark.parametrize("name", trained_networks())
def test_chips_give_the_logits_of_the_reference(name, sample):
    """Bit by bit, with the stated stack and instructions."""
    network = quantize(load_trained(name), sample.train_images[:50])
    for chip, optimisation in emulator.BUILDS:
        run = emulator.emulate(network, sample.eval_images[:20], chip, optimisation)
        print(f"{name}, {chip.processor} {optimisation}: {run}")
        assert run.wrong == 0
        assert 100 < run.stack <= STACK
        assert run.data == 0
        assert 0 <= run.memory - activation_bytes(network) < 24  # a pointer, and gaps between arrays
        if chip is emulator.M4:
            assert run.instructions == pytest.approx(instructions(network), rel=0.25)


@needs(AVR)
@pytest.mark.parametrize("name", ["s5", "below_500"])
def test_avr_keeps_constants_in_flash(name, sample, tmp_path):
    write_c(quantize(load_trained(name), sample.train_images[:20]), "net", tmp_path, sample.eval_images[:3])
    options = ("-mmcu=atmega2560", "-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-DARDUINO=1")
    run(AVR, *options, "-c", "net.c", "example.c", "drawing.c", cwd=tmp_path)
    for file in ("net.o", "example.o"):
        assert run("avr-size", file, cwd=tmp_path).split()[7] == "0"  # bytes of data
