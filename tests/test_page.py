"""The page in docs/: its JavaScript against PyTorch and Pillow by Node.js, and the page itself in a browser."""

import base64
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from helpers import build
from s5.deployment import packing, page
from s5.deployment.layer_graph import run, steps_of
from s5.inference.preprocessing import DigitError, prepare
from s5.inference.trained import load_trained, trained_networks
from s5.networks import grammar
from s5.training.augmentation import normalize
from s5.training.mnist import load_mnist
from tests.drawings import pen_mask, strokes
from tests.utils import ROOT, make_trial

NODE = shutil.which("node")
requires_node = pytest.mark.skipif(NODE is None, reason="requires Node.js")
SIDE = 256  # pixels of the page's drawing
TOLERANCE = 1e-4  # of logits
NAMES = trained_networks()


def ask_node(**request) -> dict:
    """What the page's scripts answer; see page.js."""
    command = [NODE, ROOT / "tests" / "page.js", page.PAGE]
    result = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def encode(array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=np.uint8)).decode()


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict]:
    """The networks on the page, by name."""
    found = page.NETWORKS.search(page.PAGE.read_text(encoding="utf-8"))
    return {network["name"]: network for network in json.loads(found[1])}


@pytest.fixture(scope="module")
def images():
    """The images to evaluate on: the test set of the full MNIST if it is there, else of the sample."""
    if "MNIST_ROOT" in os.environ:
        return load_mnist(allow_sample=False).eval_images
    from s5.training.mnist import load_sample

    return load_sample().eval_images


# --- The file ---------------------------------------------------------------------------------------------------------


def test_page_is_up_to_date():
    made = page.build_page(page.recorded_roundings(page.PAGE))
    assert page.PAGE.read_bytes() == made.encode(), "python -m s5.deployment.page"


def test_page_is_small_and_loads_nothing():
    text = page.PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 150_000
    assert re.findall(r"https?://[^\s\"'<>]+", page.NETWORKS.sub("", text)) == [page.repository()]
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:" in text
    for loading in (
        r"\bsrc=",
        r"@import",
        r"url\(",
        r"\bfetch\(",
        "XMLHttpRequest",
        "WebSocket",
        "sendBeacon",
        "import\\(",
    ):
        assert not re.search(loading, page.NETWORKS.sub("", text)), loading
    assert set(re.findall(r"href=\"([^\"]{4})", text)) == {"data", "http"}


def test_scripts_do_not_redefine_each_other():
    code = "\n".join((page.FILES / name).read_text(encoding="utf-8") for name in page.SCRIPTS)
    names = re.findall(r"^(?:function|class|const|let) (\w+)", code, re.MULTILINE)
    assert len(names) == len(set(names)) > 50


def test_comments_are_left_out():
    code = '// one\n"use strict";\n/** Two\n * lines. */\nfunction f() {\n  // three\n  return "//";\n}\n\n'
    assert page._without_comments(code) == '"use strict";\nfunction f() {\nreturn "//";\n}\n'


def test_accuracies_are_those_of_the_ledger():
    from s5.experiments.claims import KNOWN

    assert page.describe("s5", [])["accuracy"] == "not claimed"
    recipe = KNOWN["s5"].recipe.as_dict()
    claims = [make_trial(seed, accuracy=99 + seed, split="test", data="mnist", recipe=recipe) for seed in (0, 1)]
    described = page.describe("s5", [*claims, make_trial(2, accuracy=10, recipe=recipe)])
    assert (described["accuracy"], described["seeds"], described["parameters"]) == ("99.50%", 2, 18214)


def test_command_line(tmp_path, capsys, monkeypatch):
    path = tmp_path / "index.html"
    path.write_bytes(page.PAGE.read_bytes())
    assert page.main(["--check", "--output", str(path)]) == 0
    path.write_bytes(page.PAGE.read_bytes().replace(b"Draw a digit", b"Draw"))
    assert page.main(["--check", "--output", str(path)]) == 1
    assert "stale: python -m s5.deployment.page" in capsys.readouterr().out
    for damage in (b"<html>", page.PAGE.read_bytes().replace(b'"packing"', b'"pack"'), b"\xff"):
        (tmp_path / "damaged.html").write_bytes(damage)
        assert page.main(["--check", "--output", str(tmp_path / "damaged.html")]) == 1
        assert "is not a page of this program: write it anew without --check\n" in capsys.readouterr().err
    monkeypatch.setattr("s5.inference.trained.TRAINED", tmp_path)
    assert page.main(["--check", "--output", str(path)]) == 1
    assert "page: there are no trained networks" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        page.main(["--chek"])


# --- Weights ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_packed_numbers_are_read_again(data):
    code = data.draw(st.sampled_from([packing.FINE, *packing.COARSE]))
    largest = packing.levels(code) // 2
    numbers = data.draw(st.lists(st.integers(-largest, largest)))
    text = packing.pack(np.array(numbers, dtype=float), code)
    assert packing.unpack(text, code)[: len(numbers)] == numbers
    assert text.isascii()
    assert not set(text) & set('<"\\ \n')


def test_coarser_packings_are_shorter():
    sizes = [characters / numbers for characters, numbers in (packing.FINE, *packing.COARSE)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(packing.levels(code) ** code[1] < 2**53 for code in packing.COARSE)  # exact in JavaScript


def test_fitted_rounding_keeps_predictions(sample):
    model, images = load_trained("s5"), sample.eval_images[:300]
    with torch.inference_mode():
        expected = model(normalize(images)).argmax(1)
        packed = packing.pack_network(model, (3, 2), packing.fit(model, (3, 2), images))
        rounded = run(packing.unpack_network(packed, steps_of(model)), normalize(images))
    assert (rounded.argmax(1) == expected).all()
    with pytest.raises(packing.PackingError, match="changes predictions"):
        packing.fit(model, (1, 4), images)  # each weight -1, 0 or 1


def test_finest_rounding_that_fits_is_chosen(sample, monkeypatch):
    monkeypatch.setattr("s5.training.mnist.load_mnist", lambda allow_sample: sample.subset(100, 100))
    monkeypatch.setattr("s5.inference.trained.trained_networks", lambda: ["s5"])
    small = len(page.build_page({"s5": ((5, 3), 1.0)}).encode()) + 200
    for size, expected in ((page.MAX_BYTES, (2, 1)), (small, (5, 3))):
        monkeypatch.setattr(page, "MAX_BYTES", size)
        chosen = page.choose_roundings()
        assert chosen["s5"][0] == expected
        assert len(page.build_page(chosen).encode()) <= size
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    with pytest.raises(page.PageError, match="smaller than 1,000 bytes"):
        page.choose_roundings()


# --- JavaScript against Python ----------------------------------------------------------------------------------------


def rounded_logits(data: dict, model, images):
    """The logits of PyTorch with the page's weights."""
    with torch.inference_mode():
        steps = packing.unpack_network(data, steps_of(model))
        return torch.cat([run(steps, normalize(batch)) for batch in images.split(500)])


def node_logits(data: dict, images):
    return torch.tensor(ask_node(network=data, images=encode(images))["logits"]).reshape(-1, 10)


@requires_node
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_pytorchs(name, shipped, images):
    images = images[:1000]
    expected = rounded_logits(shipped[name], load_trained(name), images)
    torch.testing.assert_close(node_logits(shipped[name], images), expected, rtol=0, atol=TOLERANCE)


@requires_node
@pytest.mark.parametrize("name", NAMES)
def test_predictions_equal_pytorchs(name, shipped, images):
    """Of all images: by PyTorch with the page's weights, and by JavaScript where two logits are nearly equal."""
    model = load_trained(name)
    with torch.inference_mode():
        expected = torch.cat([model(normalize(batch)) for batch in images.split(500)]).argmax(1)
    logits = rounded_logits(shipped[name], model, images)
    assert (logits.argmax(1) != expected).sum() == 0
    first, second = logits.topk(2).values.T
    close = first - second < 100 * TOLERANCE
    assert (node_logits(shipped[name], images[close]).argmax(1) == expected[close]).all()


LINES = [
    "conv 4 8 / 16 32 / 40 gap",
    "conv 3 / 4 flat",
    "plain 3 / 5 / 7 gdconv dropout 0.1",
    "shared 5 ×1 / ×2 / ×3 gdconv crop 2",
    "shared-separable 6 ×2 / ×2 gap",
    "shared 4 ×1 / ×2 gap deskew 5 crop 2",
    "cellular 4 ×2 / ×2 gdconv crop 2",
    "linear 12 9",
]


@requires_node
@pytest.mark.parametrize("line", LINES)
def test_networks_of_every_kind(line, sample):
    model = build(grammar.parse(line).build).eval()
    with torch.no_grad():
        for name, values in model.named_buffers():
            if values.is_floating_point():  # as after training
                values.uniform_(0.5, 1.5) if "var" in name else values.uniform_(-0.2, 0.2)
        images = sample.eval_images[:10]
        expected = model(normalize(images))
    result = node_logits(packing.pack_network(model), images)
    torch.testing.assert_close(result, expected, rtol=0, atol=3e-3)  # 19.5 bits a weight
    torch.testing.assert_close(result, rounded_logits(packing.pack_network(model), model, images), rtol=0, atol=1e-5)


def drawings() -> list[np.ndarray]:
    """Ink, uint8 (SIDE, SIDE), with empty edges as on the page: digits of many sizes and pens, and what is no digit."""
    random = np.random.default_rng(0)
    shapes = []
    for number in range(60):
        height, pen = random.choice([0.15, 0.3, 0.5, 0.7, 0.95]), random.choice([1, 3, 6, 12, 15, 24, 40])
        lines = strokes(number % 10, number // 10, random.uniform(-0.3, 0.3), 0.01, number)
        shapes.append(pen_mask(lines, SIDE, height, pen, random.uniform(height / 2, 1 - height / 2, 2)))

    def draw(kind: str, *boxes, ink: int = 255) -> None:
        image = Image.new("L", (SIDE, SIDE))
        for box in boxes:
            getattr(ImageDraw.Draw(image), kind)(box, fill=ink)
        shapes.append(image)

    draw("rectangle")  # empty
    for radius in (0, 1, 2, 5, 9, 12, 20, 43, 60, 100):  # dots and blots
        draw("ellipse", (127 - radius, 127 - radius, 127 + radius, 127 + radius))
    for width in (0, 1, 5, 14, 33, 90, 150):
        draw("rectangle", (60, 20, 60 + width, 235))
        draw("rectangle", (20, 60, 235, 60 + width))  # too wide
    for ink in (10, 30, 31, 128):
        draw("rectangle", (80, 60, 110, 200), ink=ink)  # faint
    for size in (2, 5, 20, 30, 60):  # frames with something inside: dirt, and what is as large as a digit
        for kind in ("rectangle", "ellipse"):
            image = Image.new("L", (SIDE, SIDE))
            outline = getattr(ImageDraw.Draw(image), kind)
            outline((40, 30, 220, 230), outline=255, width=7)
            outline((130 - size, 130 - size, 130 + size, 130 + size), outline=255, width=min(size, 12))
            shapes.append(image)
    for number in range(30):  # digits in frames, some with dirt or beside a second frame
        height, kind = random.uniform(0.1, 0.5), ("rectangle", "ellipse", "rounded_rectangle")[number % 3]
        shapes.append(pen_mask(strokes(number % 10), SIDE, height, 25 * height))
        outline = getattr(ImageDraw.Draw(shapes[-1]), kind)
        for _ in range(1 + number % 4 // 3):
            left, top = random.integers(5, 90, 2)
            outline((left, top, left + random.integers(90, 150), top + random.integers(90, 150)), outline=255, width=3)
        for x, y in random.integers(1, SIDE - 2, (number // 10 * 20, 2)):
            ImageDraw.Draw(shapes[-1]).point((x, y), fill=255)
    draw("rectangle", (40, 60, 60, 180), (150, 60, 175, 180))  # two digits
    draw("rectangle", (100, 20, 140, 80), (100, 130, 140, 200))  # one above the other
    draw("rectangle", (20, 20, 120, 150), (180, 30, 190, 40))  # a blot and a speck
    shapes += [random.integers(0, 256, (SIDE, SIDE)), 255 * (random.random((SIDE, SIDE)) < 0.05)]
    inner = np.zeros((SIDE, SIDE), dtype=np.uint8)
    inner[1:-1, 1:-1] = 1
    return [np.asarray(shape).astype(np.uint8) * inner for shape in shapes]


def prepared_or_refused(ink: np.ndarray) -> dict:
    try:
        return {"image": prepare(Image.fromarray(255 - ink)).flatten().tolist()}
    except DigitError as error:
        return {"refusal": str(error)}


@requires_node
def test_preprocessing_equals_pythons_pixel_by_pixel():
    inks = drawings()
    expected = [prepared_or_refused(ink) for ink in inks]
    assert len({each["refusal"] for each in expected if "refusal" in each}) == 7
    for number, result in enumerate(ask_node(drawings=encode(np.stack(inks)))["prepared"]):
        assert result == expected[number], f"drawing {number}"


@requires_node
def test_strokes_become_ink():
    pen = 15
    lines = [[[128, 40], [128, 200]], [[5, 5]], [[-50, 128], [40, 128]]]
    points = [[[{"x": x, "y": y} for x, y in line]] for line in lines]
    for line, text in zip(lines, ask_node(strokes=points)["drawn"], strict=True):
        ink = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(SIDE, SIDE)
        expected = Image.new("L", (4 * SIDE, 4 * SIDE))
        draw = ImageDraw.Draw(expected)
        draw.line([(4 * x, 4 * y) for x, y in line], fill=255, width=4 * pen)
        for x, y in line:
            draw.ellipse([4 * x - 2 * pen, 4 * y - 2 * pen, 4 * x + 2 * pen, 4 * y + 2 * pen], fill=255)
        difference = np.abs(ink.astype(int) - np.asarray(expected.resize((SIDE, SIDE), Image.Resampling.BOX)))
        assert difference[1:-1, 1:-1].mean() < 0.5
        assert not any(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
