"""The generated C code gives the logits of the reference in Python, bit by bit, and never leaves its arrays."""

import re
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from s5.deployment.c_code import COMPILER, WARNINGS, activation_bytes, c_files, write_c
from s5.deployment.integer import IntegerNetwork
from s5.deployment.quantization import quantize
from s5.inference.trained import load_trained, trained_networks
from s5.networks.grammar import parse
from s5.training.augmentation import normalize

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LINES = (
    "conv 3 4 / 5 / 6 / 7 gap",  # odd sizes are pooled
    "plain 2 / 3 gdconv",
    "separable 3 5 / 6 7 / 8 gdconv crop 2",
    "shared 4 ×1 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2",
    "cellular 4 ×2 / ×1 / ×2 gap crop 2",
    "cellular-separable 5 ×2 / ×1 / ×3 / ×2 gdconv crop 1",
    "shared-separable 4 ×1 / ×2 / ×2 gap",
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


def check(network, folder, images, *options):
    """Compile with a `main` and run: the logits must be those of the reference, the predictions their largest."""
    expected = network(images)
    (folder / "main.c").write_text(MAIN)
    write_c(network, "net", folder, images[:3])
    files = [str(folder / "main.c"), str(folder / "net.c")]
    subprocess.run([COMPILER, *WARNINGS, *options, "-o", str(folder / "program"), *files], check=True)
    result = subprocess.run([str(folder / "program")], input=images.numpy().tobytes(), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    values = torch.from_numpy(np.frombuffer(result.stdout, np.int32).reshape(-1, 11).copy())
    assert torch.equal(values[:, :10], expected)
    assert torch.equal(values[:, 10].long(), expected.argmax(1))
    assert len(expected.unique(dim=0)) > len(images) / 2


@needs_compiler
@pytest.mark.parametrize("line", LINES)
def test_networks_of_every_kind_equal_the_reference(line, sample, tmp_path):
    """Of digits, noise, black, white, a dot in each corner, lines, and a tiny digit."""
    images = torch.cat(
        [sample.eval_images[:12], torch.randint(0, 256, (8, 28, 28)).byte(), torch.zeros(9, 28, 28).byte()]
    )
    images[21], images[22, 0, 0], images[23, 27, 27], images[24, 0, 27], images[25, 27, 0] = 255, 1, 255, 255, 7
    images[26, 13], images[27, :, 3] = 255, 255
    images[28, 9:19, 9:19] = sample.eval_images[0, 9:19, 9:19]
    check(integer_network(line, sample), tmp_path, images, *SANITIZERS)


@needs_compiler
def test_values_far_smaller_than_their_sums_equal_the_reference(sample, tmp_path):
    """Only the largest sums pass ReLU: the multipliers from sum to value are large."""
    torch.manual_seed(0)
    images, first, second = sample.train_images[:50], nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=4)
    nn.init.ones_(second.weight)
    with torch.no_grad():
        second.bias.copy_(-0.99 * first(normalize(images)).amax((0, 2, 3)))
    end = nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    model = nn.Sequential(first, nn.MaxPool2d(2), second, *end)
    check(quantize(model, images), tmp_path, images, *SANITIZERS)


@needs_compiler
@pytest.mark.parametrize("name", trained_networks())
def test_trained_networks_equal_the_reference(name, sample, tmp_path):
    """On 200 images; `python -m s5 export` compares all."""
    check(quantize(load_trained(name), sample.train_images[:100]), tmp_path, sample.eval_images[:200], "-O3")


def test_stated_sizes_are_those_of_the_code(sample):
    for line in LINES:
        network = integer_network(line, sample)
        files = c_files(network, "net", sample.eval_images[:3])
        stated = re.search(r"Constants: ([\d,]+) bytes .*\n.* ([\d,]+) bytes of activations", files["net.h"])
        constants, memory = (int(number.replace(",", "")) for number in stated.groups())
        sizes = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "int32_t": 4, "Channel": 4}
        stored = {"const IN_FLASH ": 0, "": 0}
        for const, kind, size in re.findall(r"static (const IN_FLASH )?(\w+) \w+\[(\w+)\]", files["net.c"]):
            count = len(network.layers) if size == "LAYERS" else int(size)
            stored[const] += sizes.get(kind, 0) * count  # the table of layers is stated apart
        assert stored["const IN_FLASH "] == constants == network.weight_bytes()
        assert stored[""] == memory == activation_bytes(network)


def test_shared_convolution_is_stored_once(sample):
    once, often = (integer_network(f"shared 6 ×{count} / ×1 gap crop 4", sample) for count in (1, 4))
    assert often.weight_bytes() - once.weight_bytes() == 3 * 6 * 4  # a multiplier and a bias per channel and use
    source = c_files(often, "net", sample.eval_images[:3])["net.c"]
    assert len(re.findall(r"static const IN_FLASH int8_t weights", source)) == 2  # the first, the shared one


def test_code_is_ascii_in_short_lines_whatever_the_description(sample, tmp_path):
    images, description = sample.eval_images[:3], "shared 12 ×1 → café " * 20
    for file, text in c_files(integer_network(LINES[0], sample), "net", images, description).items():
        assert "${" not in text, file
        if file.endswith((".c", ".h", ".ino")):
            assert max(map(len, text.splitlines())) <= 120, file
    write_c(integer_network(LINES[0], sample), "net", tmp_path, images, description)
    (tmp_path / "net.c").read_text(encoding="ascii")
    (tmp_path / "net.h").read_text(encoding="ascii")
