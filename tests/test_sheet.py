"""Photos of a sheet of paper on a table: the sheet is found, straightened and read."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import helpers
from s5.inference.preprocessing import DigitError, prepare, to_grey
from s5.inference.ruled_paper import border
from s5.inference.sheet import find_sheet, straighten
from s5.inference.trained import load_trained
from tests import drawings

FOLDED = np.where(np.arange(256) < 90, 1, 0.9)[:, None, None]
CORNERS = np.array([(60, 40), (200, 60), (190, 160), (50, 150)])
PAPERS = {
    "plain": {"pitch": 2000, "width": 0.0},
    "ruled": {"pitch": 60, "width": 3, "colour": (90, 130, 205), "margin": 0.1},
    "squared": {"pitch": 40, "width": 2, "squares": True},
}


def quadrilateral(corners=CORNERS, table: int = 60, paper: int = 230) -> np.ndarray:
    """A sheet with a dark stroke in its middle."""
    image = Image.new("L", (256, 192), table)
    draw = ImageDraw.Draw(image)
    draw.polygon([tuple(map(int, corner)) for corner in corners], fill=paper)
    x, y = np.array(corners).mean(0)
    draw.line([(x, y - 20), (x, y + 20)], fill=20, width=5)
    return np.asarray(image)


def photo(digit: int, paper: str) -> Image.Image:
    random = np.random.default_rng((digit, len(paper)))
    mask = drawings.pen_mask(drawings.strokes(digit, digit % 3), 500, random.uniform(0.3, 0.55), random.choice([8, 14]))
    sheet = drawings.write(drawings.ruled(500, **PAPERS[paper]), mask, (35, 55, 155))
    turn, tilt, light = random.uniform(-12, 12), random.uniform(0, 35), random.uniform(0, 0.5)
    table = drawings.TABLES[digit % 6]
    return drawings.on_table(sheet, (800, 600), random.uniform(0.6, 0.95), turn, tilt, table, light, seed=digit)


@pytest.mark.parametrize("paper", PAPERS)
def test_photos_of_a_sheet_on_a_table_are_read(paper):
    model, results = load_trained(), []
    for digit in range(10):
        try:
            results.append(int(helpers.predict(model, prepare(photo(digit, paper))[None]).argmax()) - digit)
        except DigitError:
            results.append(None)
    assert results.count(0) >= 9
    assert results.count(0) + results.count(None) == 10


@pytest.mark.parametrize("table", [20, 120, 180])
def test_corners_are_found_from_the_top_left_clockwise(table):
    for turn in range(2):  # the sheet, and the photo of it upside down
        grey = quadrilateral(table=table)[:: 1 - 2 * turn, :: 1 - 2 * turn]
        expected = np.roll((255, 191) - CORNERS, 2, 0) if turn else CORNERS
        assert np.abs(find_sheet(np.ascontiguousarray(grey)) - expected).max() <= 2


def test_a_straightened_sheet_is_as_wide_and_high_and_shows_what_was_on_it():
    seen = straighten(quadrilateral(), CORNERS.astype(float))
    assert abs(seen.shape[1] - 140) < 10
    assert abs(seen.shape[0] - 108) < 10
    assert border(seen).min() > 200, "no table"
    assert abs(np.nonzero(seen < 100)[1].mean() - seen.shape[1] / 2) < 6


def without_sheet() -> dict[str, Image.Image]:
    mask = drawings.pen_mask(drawings.strokes(9), 256, 0.7, 24)
    fold = np.asarray(drawings.write(Image.new("RGB", (256, 256), "white"), mask)) * FOLDED
    return {
        "light 9 on black": mask,
        "rules": drawings.write(drawings.ruled(256, 60, 4, (45, 45, 45)), mask),
        "uneven light": drawings.photographed(drawings.write(drawings.ruled(256, 999, 0), mask), shade=0.6),
        "fold": Image.fromarray(fold.astype(np.uint8)),
        "blank sheet": Image.new("L", (150, 150), 230).crop((-50, -50, 200, 200)),
    }


@pytest.mark.parametrize("kind", without_sheet())
def test_what_is_no_sheet_with_ink(kind):
    assert find_sheet(to_grey(without_sheet()[kind])) is None
