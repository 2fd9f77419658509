"""The exported folder in makers' hands: the example, the sketch, drawings, and emulated chips."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from s5.deployment.c_code import COMPILER, INSTRUCTIONS, STACK, WARNINGS, activation_bytes, write_c
from s5.deployment.quantization import quantize
from s5.inference import preprocessing
from s5.inference.trained import load_trained, trained_networks

ARM, QEMU, AVR = "arm-none-eabi-gcc", "qemu-system-arm", "avr-gcc"
CHIPS = (  # processor, optimisation, machine of qemu, nanoseconds of a tick of its timer
    ("cortex-m4", "-O2", "mps2-an386", 40),
    ("cortex-m4", "-Os", "mps2-an386", 40),
    ("cortex-m0plus", "-Os", "microbit", 62.5),
)
LINKER_SCRIPT = """
MEMORY { FLASH : ORIGIN = 0, LENGTH = 256K RAM : ORIGIN = 0x20000000, LENGTH = 16K }
end_of_ram = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > FLASH
    .bss : { start_of_bss = .; *(.bss*) *(COMMON) . = ALIGN(4); end_of_bss = .; } > RAM
    /DISCARD/ : { *(.data*) }
}
"""
MAIN = """
#include <stdint.h>
#include "net.h"
#include "images.h"

extern uint32_t start_of_bss, end_of_bss, end_of_ram;
static uint8_t image[784];

static void call(int function, const void *argument) /* of the emulator, known as semihosting */
{
    register int r0 __asm__("r0") = function;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print(uint32_t value)
{
    char text[12] = {0}, *digit = text + 11;
    *--digit = ' ';
    do
        *--digit = '0' + value % 10;
    while (value /= 10);
    call(4, digit);
}

static void start(void)
{
    volatile uint32_t *const timer = (volatile uint32_t *)0xE000E010;
    uint32_t here, wrong = 0, ticks = 0, *free = &end_of_bss;
    for (uint32_t *word = &start_of_bss; word < &here - 64; word++)
        *word = word < &end_of_bss ? 0 : 0xdeadbeef;
    timer[1] = 0xffffff, timer[2] = 0, timer[0] = 5;
    for (int number = 0; number < COUNT; number++) {
        int32_t logits[10];
        for (int i = 0; i < 784; i++)
            image[i] = images[number][i];
        const uint32_t before = timer[2];
        net_logits(image, logits);
        ticks += (before - timer[2]) & 0xffffff;
        for (int i = 0; i < 10; i++)
            wrong += logits[i] != expected[number][i];
        net_predict(image); /* it needs the most stack */
    }
    while (*free == 0xdeadbeef)
        free++;
    print(wrong), print(ticks / COUNT), print((uint32_t)&here - (uint32_t)free);
    call(0x18, (void *)0x20026);
}

static void fault(void) { call(4, "fault"), call(0x18, (void *)0x20023); }

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    &end_of_ram, (void *)start, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault};
"""
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


def arrays(images, logits) -> str:
    """The images and their logits in C."""
    text = f"#define COUNT {len(images)}\n"
    for name, rows in (("uint8_t images[][784]", images.flatten(1)), ("int32_t expected[][10]", logits)):
        text += f"static const {name} = {str(rows.tolist()).translate({91: 123, 93: 125})};\n"
    return text


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


@needs(ARM, QEMU)
@pytest.mark.parametrize("name", trained_networks())
def test_chips_give_the_logits_of_the_reference(name, sample, tmp_path):
    """Bit by bit, with the stated stack and instructions; the emulator's clock counts a nanosecond for each."""
    network, images = quantize(load_trained(name), sample.train_images[:50]), sample.eval_images[:20]
    write_c(network, "net", tmp_path, images[:3])
    (tmp_path / "images.h").write_text(arrays(images, network(images)))
    (tmp_path / "main.c").write_text(MAIN)
    (tmp_path / "chip.ld").write_text(LINKER_SCRIPT)
    for processor, optimisation, machine, nanoseconds in CHIPS:
        build = (ARM, f"-mcpu={processor}", "-mthumb", optimisation)
        run(*build, *WARNINGS, "-c", "net.c", cwd=tmp_path)
        run(*build, "-nostartfiles", "-T", "chip.ld", "-o", "chip.elf", "main.c", "net.o", cwd=tmp_path)
        emulate = (QEMU, "-M", machine, "-kernel", "chip.elf", "-icount", "shift=0", "-display", "none")
        result = subprocess.run(
            [*emulate, "-semihosting-config", "enable=on,target=native"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100,
        )  # fmt: skip
        wrong, ticks, stack = map(int, result.stdout.split())
        instructions = ticks * nanoseconds
        size = run("arm-none-eabi-size", "net.o", cwd=tmp_path).split()[6:9]
        print(
            f"{name}, {processor} {optimisation}: text, data, bss {size}, stack {stack}, {instructions:,} instructions"
        )
        assert wrong == 0
        assert 100 < stack <= STACK
        assert size[1] == "0"
        assert 0 <= int(size[2]) - activation_bytes(network) < 24  # a pointer, and gaps between arrays
        if processor == "cortex-m4":
            assert INSTRUCTIONS[0] <= instructions / network.macs <= INSTRUCTIONS[1]


@needs(AVR)
@pytest.mark.parametrize("name", ["s5", "below_500"])
def test_avr_keeps_constants_in_flash(name, sample, tmp_path):
    write_c(quantize(load_trained(name), sample.train_images[:20]), "net", tmp_path, sample.eval_images[:3])
    options = ("-mmcu=atmega2560", "-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-DARDUINO=1")
    run(AVR, *options, "-c", "net.c", "example.c", "drawing.c", cwd=tmp_path)
    for file in ("net.o", "example.o"):
        assert run("avr-size", file, cwd=tmp_path).split()[7] == "0"  # bytes of data
