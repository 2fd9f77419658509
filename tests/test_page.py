"""The page in docs/: its JavaScript against PyTorch and Pillow by Node.js, and the page itself in a browser."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from s5.commands.export import main
from s5.deployment import page
from s5.deployment.layer_graph import run, steps_of
from s5.experiments.claims import CLAIMS
from s5.inference.preprocessing import DigitError, prepare
from s5.inference.trained import load_trained, trained_networks
from s5.training.augmentation import normalize
from tests.drawings import on_table, pen_mask, photographed, ruled, strokes, write
from tests.utils import ROOT, SLUG, claim_trials, make_trial

NODE = shutil.which("node")
requires_node = pytest.mark.skipif(NODE is None, reason="requires Node.js")
SIDE = 256  # pixels of the page's drawing
NETWORKS = re.compile(r'<script type="application/json" id="networks">(.*?)</script>', re.DOTALL)


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
    found = NETWORKS.search(page.PAGE.read_text(encoding="utf-8"))
    return {network["name"]: network for network in json.loads(found[1])}


# --- The file ---------------------------------------------------------------------------------------------------------


def test_page_is_up_to_date(capsys):
    assert main(["page", "--check"]) == 0, capsys.readouterr().out


def test_page_is_small_and_may_load_nothing():
    text = page.PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 200_000
    assert (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; worker-src blob:"
        in text
    )
    assert re.findall(r"https?://[^\s\"'<>]+", NETWORKS.sub("", text)) == [f"https://github.com/{SLUG}"]


def test_accuracies_are_those_of_the_claimed_trials():
    trials = claim_trials(CLAIMS["s5"], [99.2, 99.4])
    described = page.describe("s5", [*trials, make_trial(2, accuracy=10)])
    assert (described["accuracy"], described["parameters"]) == ("99.30%, mean of 2 seeds", 18214)


def test_command_writes_the_page_and_finds_an_old_one(tmp_path, capsys, monkeypatch):
    path = tmp_path / "pages" / "index.html"
    monkeypatch.setattr(page, "PAGE", path)
    assert main(["page", "--check"]) == 1
    assert "stale: python -m s5 export page" in capsys.readouterr().out
    assert not path.exists()
    assert main(["page"]) == 0
    assert main(["page", "--check"]) == 0
    path.write_bytes(path.read_bytes().replace(b"Draw a digit", b"Draw"))
    assert main(["page", "--check"]) == 1


# --- JavaScript against Python ----------------------------------------------------------------------------------------


def unpack(packed: list, shape) -> torch.Tensor:
    unit, digits, text = packed
    places = np.array([page.BASE64.index(digit) for digit in text]).reshape(-1, digits)
    whole = places @ 64 ** np.arange(digits)[::-1] - 64**digits // 2
    return torch.from_numpy((unit * whole).astype(np.float32)).reshape(shape)


def rounded_logits(data: dict, model, images):
    """The logits of PyTorch with the page's weights."""
    steps = steps_of(model)
    for step, entry in zip(steps, data["steps"], strict=True):
        if step.weight is not None:
            step.weight = unpack(data["weights"][entry["weight"]], step.weight.shape)
            step.bias = unpack(entry["bias"], -1)
            step.scale = unpack(entry["scale"], -1) if "scale" in entry else None
    return run(steps, normalize(images))[-1]


@requires_node
@pytest.mark.parametrize("name", trained_networks())
def test_rounded_networks_give_the_answers_of_pytorch(name, shipped, sample):
    model, images = load_trained(name), sample.eval_images[:100]
    with torch.inference_mode():
        expected = model(normalize(images))
        rounded = rounded_logits(shipped[name], model, images)
    assert torch.equal(rounded.argmax(1), expected.argmax(1))
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.05)
    logits = torch.tensor(ask_node(network=shipped[name], images=encode(images))["logits"])
    torch.testing.assert_close(logits, rounded, rtol=0, atol=1e-4)


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


def prepared_or_refused(image: Image.Image) -> dict:
    try:
        return {"image": prepare(image).flatten().tolist()}
    except DigitError as error:
        return {"refusal": str(error)}


@requires_node
def test_preprocessing_equals_pythons_pixel_by_pixel():
    inks = drawings()
    expected = [prepared_or_refused(Image.fromarray(255 - ink)) for ink in inks]
    assert len({each["refusal"] for each in expected if "refusal" in each}) == 7
    for number, result in enumerate(ask_node(drawings=encode(np.stack(inks)))["prepared"]):
        assert result == expected[number], f"drawing {number}"


def photos() -> list[Image.Image]:
    """Scans and phone photos of digits on paper of three kinds, of several sizes, and an empty table."""
    images = []
    for number in range(12):
        size = (220, 300, 500)[number % 3]
        degrees, pitch = number % 5 - 2, size / (7 + number % 4)
        papers = (
            Image.new("RGB", (size, size), (250, 250 - 9 * number, 230)),
            ruled(size, pitch, size / 220, degrees=degrees, margin=0.1),
            ruled(size, pitch, size / 220, degrees=degrees, squares=True),
        )
        mask = pen_mask(strokes(number % 10), size, 0.4 + number % 3 / 10, size / 30)
        image = write(papers[number // 2 % 3], mask, ink=(number, 20, 90))
        if number % 2:
            image = on_table(image, (400, 300), 0.6 + number / 40, 4 * number - 20, 2 * number, seed=number)
        images.append(photographed(image, seed=number))
    images += [images[0].crop((0, 40, 200, 170)), images[1].resize((60, 45)), images[2].resize((20, 28))]
    images.append(on_table(Image.new("RGB", (30, 30)), (300, 260), 0.1))
    images.append(on_table(images[0], (400, 300), 0.8, turn=40))
    return images


@requires_node
def test_photos_are_prepared_as_in_python():
    images = photos()
    expected = [prepared_or_refused(image) for image in images]
    assert len({each.get("refusal") for each in expected}) >= 3
    asked = [{"width": image.width, "height": image.height, "data": encode(image.convert("RGBA"))} for image in images]
    for number, result in enumerate(ask_node(photos=asked)["photos"]):
        assert result == expected[number], f"photo {number}"
