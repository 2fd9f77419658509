"""The exported C code on emulated chips: whether it gives the right logits, and what it needs.

Requires Debian's packages gcc-arm-none-eabi and qemu-system-arm, or their like.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from s5.deployment.c_code import WARNINGS, write_c
from s5.deployment.integer import IntegerNetwork

PROGRAMS = COMPILER, EMULATOR, SIZE = "arm-none-eabi-gcc", "qemu-system-arm", "arm-none-eabi-size"
SOURCES = Path(__file__).parent / "chip_files"


@dataclass(frozen=True)
class Chip:
    """A processor, and how it is emulated."""

    processor: str
    machine: str  # of qemu
    nanoseconds: float  # of a tick of its timer


M4 = Chip("cortex-m4", "mps2-an386", 40)
M0 = Chip("cortex-m0plus", "microbit", 62.5)
BUILDS = ((M4, "-O2"), (M4, "-Os"), (M0, "-Os"))


@dataclass(frozen=True)
class Run:
    """What was seen of a network on a chip."""

    wrong: int  # logits that differ from those of the reference
    instructions: int  # for an image; not cycles, which depend on the memory of a chip
    stack: int  # bytes
    flash: int  # bytes of code and constants
    data: int  # bytes of variables with an initial value
    memory: int  # bytes of the other variables: activations


def is_available() -> bool:
    """Whether the compiler and the emulator are installed."""
    return all(map(shutil.which, PROGRAMS))


def emulate(network: IntegerNetwork, images: Tensor, chip: Chip, optimisation: str) -> Run:
    """Build the C code, run it on uint8 images (N, 28, 28) and compare its logits with the reference.

    The emulator's clock counts a nanosecond for each instruction (`-icount shift=0`). Raises RuntimeError if the code
    cannot be built or run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            return done.stdout

        write_c(network, "net", folder, images[:3])
        (folder / "images.h").write_text(_arrays(images, network(images)))
        for source in SOURCES.iterdir():
            shutil.copy(source, folder)
        build = (COMPILER, f"-mcpu={chip.processor}", "-mthumb", optimisation)
        problems = run(*build, *WARNINGS, "-c", "net.c")
        problems += run(*build, "-nostartfiles", "-T", "chip.ld", "-o", "chip.elf", "main.c", "net.o")
        emulated = (EMULATOR, "-M", chip.machine, "-kernel", "chip.elf", "-icount", "shift=0", "-display", "none")
        printed = run(*emulated, "-semihosting-config", "enable=on,target=native")
        if problems or len(printed.split()) != 3:
            raise RuntimeError(f"the C code cannot be run on {chip.processor}: {problems}{printed}")
        wrong, ticks, stack = map(int, printed.split())
        flash, data, memory = map(int, run(SIZE, "net.o").split()[6:9])
    return Run(wrong, round(ticks * chip.nanoseconds), stack, flash, data, memory)


def _arrays(images: Tensor, logits: Tensor) -> str:
    """The images and their logits in C."""
    text = f"#define COUNT {len(images)}\n"
    for name, rows in (("uint8_t images[][784]", images.flatten(1)), ("int32_t expected[][10]", logits)):
        text += f"static const {name} = {str(rows.tolist()).translate({91: 123, 93: 125})};\n"
    return text
