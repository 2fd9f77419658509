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


def written(digit: int, pen: float, ink="black", style: int = 0, **paper) -> Image.Image:
    mask = drawings.pen_mask(drawings.strokes(digit, style, slant=0.1), SIZE, 0.5, pen)
    return drawings.write(drawings.ruled(SIZE, **paper), mask, PENS[ink])


def outcome(image: Image.Image, digit: int) -> str:
    try:
        return "right" if helpers.predict(load_trained(), prepare(image)[None]).argmax() == digit else "wrong"
    except DigitError:
        return "refused"


@pytest.mark.parametrize("paper", PAPERS)
def test_digits_on_ruled_paper_are_read_or_refused(paper):
    results = []
    for number, (colour, ink) in enumerate((colour, ink) for colour in RULES for ink in PENS):
        digit, pen = (3 * number + 7) % 10, (5, 8, 14)[number % 3]
        options = PAPERS[paper] | {"colour": RULES[colour], "offset": (number * 0.37) % 1}
        image = written(digit, pen, ink, number % 3, **options)
        results.append(outcome(drawings.photographed(image, seed=number) if number % 2 else image, digit))
    assert results.count("right") >= 15, results
    assert results.count("wrong") == 0, results


def test_digits_that_stand_on_a_rule_are_read():
    paper = {"pitch": SIZE / 2, "offset": 0.5, "width": 3, "colour": RULES["blue"]}  # rules at their top and foot
    assert [outcome(written(digit, 8, **paper), digit) for digit in range(10)] == 10 * ["right"]


def test_rules_leave_no_trace_in_what_the_network_sees():
    on_blank = written(3, 10, pitch=70, width=0.0)
    on_ruled = written(3, 10, pitch=70, width=3, colour=RULES["blue"], squares=True)
    assert (prepare(on_blank).float() - prepare(on_ruled).float()).abs().mean() < 6


def test_what_cannot_be_separated_from_rules_is_refused():
    image = np.asarray(written(4, 6, pitch=60, width=3)).copy()
    image[150:156, :160] = 20  # from the digit to the edge: no rule, and not the digit's either
    with pytest.raises(DigitError, match="lines of ruled paper cannot be separated"):
        prepare(Image.fromarray(image))
    for colour in RULES.values():
        with pytest.raises(DigitError):
            prepare(drawings.ruled(SIZE, pitch=60, width=3, colour=colour))


@pytest.mark.parametrize("pad", [0, 1, 12])
def test_strokes_from_edge_to_edge_are_not_rules(pad):
    """The stem of a 1, the bar of a 7 and the foot of a 2 fill an image that is cropped to the digit."""
    for digit, style, pen in ((digit, style, pen) for digit in range(10) for style in range(3) for pen in (5, 24)):
        mask = drawings.pen_mask(drawings.strokes(digit, style), SIZE, 0.6, pen)
        left, top, right, bottom = mask.getbbox()
        contrast = np.asarray(mask.crop((left - pad, top - pad, right + pad, bottom + pad)).resize((200, 200)))
        assert without_rules(contrast) is contrast, (digit, style, pen)
