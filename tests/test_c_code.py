"""The generated C code gives the logits of the reference in Python, bit by bit, and never leaves its arrays."""

import re
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from s5.deployment.c_code import (
    WARNINGS,
    CompiledNetwork,
    CompilerError,
    activation_bytes,
    c_code,
    find_compiler,
    write_c,
)
from s5.deployment.integer import IntegerNetwork
from s5.deployment.quantization import quantize
from s5.inference.trained import load_trained, trained_networks
from s5.networks.grammar import parse
from s5.training.augmentation import normalize

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler (cc, gcc or clang)")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LINES = (
    "conv 3 4 / 5 / 6 / 7 gap",  # odd sizes are pooled
    "conv 2 / 3 / 3 / 3 / 4 gap",  # down to one pixel
    "conv 40 gap crop 11",
    "plain 2 / 3 gdconv",
    "separable 3 5 / 6 7 / 8 gdconv crop 2",
    "shared 4 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
    "shared-separable 6 ×1 / ×2 / ×2 gap",  # with signed values in the middle of a layer
    "shared 4 ×1 / ×2 gap deskew 5 crop 2",
    "cellular 4 ×2 / ×1 / ×2 gdconv deskew 5 crop 2",
    "cellular 3 ×1 gap",
)
MAIN = """
#include <stdio.h>
#include "net.h"

int main(void)
{
    static uint8_t image[784];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        int32_t logits[11];
        net_logits(image, logits);
        logits[10] = net_predict(image);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def integer_network(line: str, sample) -> IntegerNetwork:
    """With random weights, negative factors of BatchNorm included, and not dead on the images."""
    torch.manual_seed(0)
    network, images = parse(line).build(), sample.train_images[:50]
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics become those of the images
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias, 0, 0.5)
    network.train()(normalize(images))
    return quantize(network.eval(), images)


def compile_program(network, folder, *options):
    """A program that reads images from standard input and writes ten logits and the prediction of each, int32."""
    write_c(network, "net", folder)
    (folder / "main.c").write_text(MAIN)
    files = [str(folder / name) for name in ("main.c", "net.c")]
    program = folder / "program"
    subprocess.run([find_compiler(), *WARNINGS, *options, "-o", str(program), *files], check=True)
    return program


def check(program, images, expected):
    """Run the program; its logits must be `expected`, its predictions their largest."""
    result = subprocess.run([str(program)], input=images.numpy().tobytes(), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    values = torch.from_numpy(np.frombuffer(result.stdout, np.int32).reshape(-1, 11).copy())
    assert torch.equal(values[:, :10], expected)
    assert torch.equal(values[:, 10].long(), expected.argmax(1))


@needs_compiler
@pytest.mark.parametrize("line", LINES)
def test_networks_of_every_kind_equal_the_reference(line, sample, tmp_path):
    network = integer_network(line, sample)
    torch.manual_seed(1)
    images = torch.cat([sample.eval_images[:12], torch.randint(0, 256, (8, 28, 28)).byte()])
    expected = network(images)
    assert len(expected.unique(dim=0)) > 10
    check(compile_program(network, tmp_path, *SANITIZERS), images, expected)


@needs_compiler
def test_any_image_is_deskewed_as_by_the_reference(sample, tmp_path):
    """Black, white, a dot in each corner, lines, faint noise, slanted and tiny digits."""
    images = torch.zeros(12, 28, 28, dtype=torch.uint8)
    images[1], images[2, 0, 0], images[3, 27, 27], images[4, 0, 27], images[5, 27, 0] = 255, 1, 255, 255, 7
    images[6, 13], images[7, :, 3], images[8] = 255, 255, torch.randint(0, 3, (28, 28)).byte()
    images[9] = 255 * torch.eye(28).byte()
    images[10], images[11, 9:19, 9:19] = images[9].flip(0), sample.eval_images[0, 9:19, 9:19]
    network = integer_network("conv 3 / 4 gdconv deskew 5", sample)
    check(compile_program(network, tmp_path, *SANITIZERS), images, network(images))


@needs_compiler
@pytest.mark.parametrize("name", trained_networks())
def test_trained_networks_equal_the_reference(name, sample, tmp_path):
    """On 200 images; `python -m s5 export` compares all."""
    network, images = quantize(load_trained(name), sample.train_images[:100]), sample.eval_images[:200]
    check(compile_program(network, tmp_path, "-O3"), images, network(images))


@needs_compiler
def test_two_networks_in_one_program_do_not_disturb_each_other(sample, tmp_path):
    lines = {"first": "plain 2 gdconv", "second": "conv 3 gap"}
    sources = [write_c(integer_network(line, sample), name, tmp_path)[1] for name, line in lines.items()]
    (tmp_path / "main.c").write_text('#include "first.h"\n#include "second.h"\nint main(void) { return 0; }\n')
    files = [str(tmp_path / "main.c"), *map(str, sources)]
    subprocess.run([find_compiler(), *WARNINGS, "-o", str(tmp_path / "program"), *files], check=True)


def test_stated_sizes_are_those_of_the_code(sample):
    for line in LINES:
        network = integer_network(line, sample)
        header, source = c_code(network, "net")
        stated = re.search(r"Constants: ([\d,]+) bytes .*\n.* ([\d,]+) bytes of activations", header)
        constants, memory = (int(number.replace(",", "")) for number in stated.groups())
        sizes = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "int32_t": 4, "Channel": 4}
        stored = {"const ": 0, "": 0}
        for const, kind, size in re.findall(r"static (const )?(\w+) \w+\[(\w+)\]", source):
            count = len(network.layers) if size == "LAYERS" else int(size)
            stored[const] += sizes.get(kind, 0) * count  # the table of layers is stated apart
        assert stored["const "] == constants == network.weight_bytes()
        assert stored[""] == memory == activation_bytes(network)


def test_shared_convolution_is_stored_once(sample):
    once, often = (integer_network(f"shared 6 ×{count} gap", sample) for count in (1, 4))
    assert often.weight_bytes() - once.weight_bytes() == 3 * 6 * 4  # a multiplier and a bias per channel and use
    assert len(re.findall(r"static const int8_t weights", c_code(often, "net")[1])) == 2  # the first, the shared one


def test_code_is_ascii_in_short_lines_whatever_the_description(sample, tmp_path):
    for path in write_c(integer_network("conv 4 gap", sample), "net", tmp_path, "shared 12 ×1 → café " * 20):
        text = path.read_text(encoding="ascii")
        assert max(map(len, text.splitlines())) <= 120
        assert "$" not in text


@needs_compiler
def test_compiler_that_is_missing_or_refuses_the_code_is_reported(tmp_path, monkeypatch):
    (tmp_path / "net.c").write_text("int net_logits(void) { return x; }")
    with pytest.raises(CompilerError, match=r"does not compile net\.c"):
        CompiledNetwork(tmp_path / "net.c", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    with pytest.raises(CompilerError, match="no C compiler"):
        CompiledNetwork(tmp_path / "net.c", tmp_path)
