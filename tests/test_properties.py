"""Whatever is put in, nothing but the documented errors comes out: networks' lines, images.

Few examples by default, the same ones every time. More, and new ones each time: HYPOTHESIS_PROFILE=thorough pytest
tests/test_properties.py
"""

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from s5.inference.preprocessing import DigitError, prepare
from s5.networks.grammar import BLOCKS, HEADS, OPTIONS, NetworkError, parse

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

PARTS = [*BLOCKS, *HEADS, *OPTIONS, "/", "×1", "x2", "×99", "4", "8", "0", "-1", "1e9", "0.5", "nan", "²", "9" * 5000]
LINES = st.one_of(st.lists(st.sampled_from(PARTS), max_size=12).map(" ".join), st.text(max_size=30))


@given(LINES)
def test_a_line_is_a_network_or_one_line_says_what_is_wrong(line):
    try:
        network = parse(line)
    except NetworkError as error:
        assert "\n" not in str(error)
        return
    assert parse(str(network)) == network
    assert network.parameters > 0


@st.composite
def images(draw) -> Image.Image:
    """An image of any size and mode: rectangles and noise, or a single colour."""
    size = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    pixels = np.full(size, draw(st.integers(0, 255)))
    for _ in range(draw(st.integers(0, 4))):
        row, column = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        pixels[row : row + draw(st.integers(1, 40)), column : column + draw(st.integers(1, 40))] = draw(
            st.integers(0, 255)
        )
    pixels += np.random.default_rng(draw(st.integers(0, 99))).integers(0, draw(st.integers(1, 256)), size)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    mode = draw(st.sampled_from(["L", "RGB", "RGBA", "LA", "1", "P", "I", "F", "I;16", "CMYK", "HSV"]))
    return image.convert("I").convert(mode) if mode == "I;16" else image.convert("RGB").convert(mode)


@given(images())
def test_an_image_is_prepared_or_one_line_says_why_not(image):
    before = image.tobytes()
    try:
        prepared = prepare(image)
    except DigitError as error:
        assert "\n" not in str(error)
        return
    assert prepared.shape == (28, 28)
    assert int(prepared.max()) > 0
    assert image.tobytes() == before
