"""Digits on ruled paper: rules are removed, strokes repaired, and a digit's own strokes are never taken for rules."""

import numpy as np
import pytest
from PIL import Image

import helpers
from s5.inference.preprocessing import DigitError, prepare
from s5.inference.ruled_paper import without_rules
from s5.inference.trained import load_trained
from tests import drawings

SIZE = 320
RULES = {"light": (165, 195, 235), "blue": (90, 130, 205), "grey": (150, 150, 150), "black": (45, 45, 45)}
PENS = {"black": (20, 20, 25), "blue": (35, 55, 155), "red": (195, 40, 40), "pencil": (95, 95, 95)}
PAPERS = {  # a millimetre is 10 pixels; the digit is 16 mm high
    "narrow": {"pitch": 50, "width": 2},
    "wide": {"pitch": 120, "width": 4},
    "squares": {"pitch": 60, "width": 2, "squares": True},
    "margin": {"pitch": 80, "width": 3, "margin": 0.12},
    "slanted": {"pitch": 70, "width": 3, "degrees": 5},
}


@pytest.fixture(scope="module")
def model():
    return load_trained()


def outcome(model, image: Image.Image, digit: int) -> str:
    try:
        return "right" if helpers.predict(model, prepare(image)[None]).argmax() == digit else "wrong"
    except DigitError:
        return "refused"


def written(digit: int, pen: float, ink="black", style: int = 0, height: float = 0.5, **paper) -> Image.Image:
    mask = drawings.pen_mask(drawings.strokes(digit, style, slant=0.1), SIZE, height, pen)
    return drawings.write(drawings.ruled(SIZE, **paper), mask, PENS[ink])


@pytest.mark.parametrize("paper", PAPERS)
def test_digits_on_ruled_paper_are_read(model, paper):
    results = []
    for number, (colour, ink) in enumerate((colour, ink) for colour in RULES for ink in PENS):
        digit, pen = (3 * number + 7) % 10, (5, 8, 14)[number % 3]
        options = PAPERS[paper] | {"colour": RULES[colour], "offset": (number * 0.37) % 1}
        image = written(digit, pen, ink, number % 3, **options)
        if number % 2:
            image = drawings.photographed(image, seed=number)
        results.append(outcome(model, image, digit))
    assert results.count("right") >= 15, results
    assert results.count("wrong") == 0, results


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_that_stands_on_a_rule_is_read(model, digit):
    image = written(digit, 8, pitch=SIZE * 0.5, offset=0.5, width=3, colour=RULES["blue"])  # at its top and its foot
    assert outcome(model, image, digit) == "right"


def test_rules_leave_no_trace_in_what_the_network_sees():
    on_blank = written(3, 10, pitch=70, width=0.0)
    on_ruled = written(3, 10, pitch=70, width=3, colour=RULES["blue"], squares=True)
    difference = (prepare(on_blank).float() - prepare(on_ruled).float()).abs()
    assert difference.mean() < 6


@pytest.mark.parametrize("colour", [RULES["blue"], RULES["black"]], ids=["blue", "black"])
def test_ruled_paper_without_a_digit_is_refused(colour):
    with pytest.raises(DigitError):
        prepare(drawings.ruled(SIZE, pitch=60, width=3, colour=colour))


def test_a_stroke_that_cannot_be_separated_is_refused_with_that_reason():
    image = np.asarray(written(4, 6, pitch=60, width=3)).copy()
    image[150:156, :160] = 20  # from the digit to the edge: no rule, and not the digit's either
    with pytest.raises(DigitError, match="lines of ruled paper cannot be separated"):
        prepare(Image.fromarray(image))


def contrast_of(image: Image.Image) -> np.ndarray:
    return (1 - np.asarray(image.convert("L").resize((200, 200)), dtype=np.float32) / 255).clip(0)


@pytest.mark.parametrize("pad", [0, 1, 12])
@pytest.mark.parametrize("style", range(3))
@pytest.mark.parametrize("digit", range(10))
def test_strokes_from_edge_to_edge_are_not_rules(digit, style, pad):
    """The stem of a 1, the bar of a 7 and the foot of a 2 fill an image that is cropped to the digit."""
    for pen in (5, 24):
        mask = drawings.pen_mask(drawings.strokes(digit, style), SIZE, 0.6, pen)
        left, top, right, bottom = mask.getbbox()
        mask = mask.crop((left - pad, top - pad, right + pad, bottom + pad))
        contrast = contrast_of(drawings.write(Image.new("RGB", mask.size, "white"), mask))
        assert without_rules(contrast) is contrast


def test_a_drawing_on_blank_paper_takes_the_plain_path(sample):
    for number, image in enumerate(sample.eval_images[:40]):
        large = Image.fromarray(255 - image.numpy()).resize((200, 200), Image.Resampling.BICUBIC)
        contrast = contrast_of(drawings.photographed(large.convert("RGB"), shade=0, seed=number))
        assert without_rules(contrast) is contrast
