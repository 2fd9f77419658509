"""Conversion of photos and drawings to images like those of MNIST."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

import helpers
from s5.inference import preprocessing
from s5.inference.preprocessing import MAX_BYTES, DigitError, NoInkError, prepare, read_image
from s5.training.checkpoint import load_weights
from s5.training.files import WEIGHTS
from tests import drawings
from tests.utils import draw_digit, to_bytes


@pytest.fixture(scope="module")
def model():
    return load_weights(helpers.build(), WEIGHTS)


def predicted_digit(model, image: Image.Image) -> int:
    return int(helpers.predict(model, prepare(image)[None]).argmax())


def test_size_and_centre_are_those_of_mnist():
    image = prepare(draw_digit(4))
    assert image.shape == (28, 28)
    assert image.dtype == torch.uint8
    assert image.max() == 255
    rows, columns = (image > 64).any(1).nonzero().flatten(), (image > 64).any(0).nonzero().flatten()
    assert 19 <= rows[-1] - rows[0] + 1 <= 21
    assert columns[-1] - columns[0] + 1 < 20
    weights = image.double() / image.sum()
    for axis in (0, 1):
        assert abs((weights.sum(1 - axis) * torch.arange(28)).sum() - 13.5) <= 0.6


@pytest.mark.parametrize("digit", [0, 1, 4, 7])
@pytest.mark.parametrize(
    "style",
    [
        {},
        {"ink": "white", "paper": "black"},
        {"ink": "navy", "paper": "khaki"},
        {"ink": "yellow", "paper": "darkgreen"},
        {"ink": (200, 30, 30), "paper": (30, 118, 30)},
        {"width": 4},
        {"width": 30},
        {"ink": (90, 90, 90), "paper": (150, 150, 150)},
    ],
    ids=["plain", "inverted", "ink", "chalk", "same brightness", "thin", "thick", "low contrast"],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_pens_and_papers(model, digit, style, format):
    assert predicted_digit(model, read_image(to_bytes(draw_digit(digit, **style), format))) == digit


def test_size_position_and_colour_do_not_matter():
    expected = prepare(draw_digit(4, ink="white", paper="black")).float()
    larger = draw_digit(4, size=300).resize((1200, 1200), Image.Resampling.LANCZOS)
    moved = Image.new("RGB", (500, 400), "white")
    moved.paste(draw_digit(4), (150, 30))
    for image in (draw_digit(4), larger, moved):
        assert (prepare(image).float() - expected).abs().mean() < 12


def test_transparent_backgrounds(model):
    for ink in ("black", "white"):
        assert predicted_digit(model, draw_digit(7, ink=ink, paper=(0, 0, 0, 0), mode="RGBA")) == 7
    palette = draw_digit(7, mode="L").convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert predicted_digit(model, read_image(to_bytes(palette))) == 7


def test_exif_rotation(model):
    upright = draw_digit(7)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90° clockwise
    rotated = to_bytes(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif.tobytes())
    assert predicted_digit(model, read_image(rotated)) == 7


@pytest.mark.parametrize("damage", [b"II*\x00", b"no EXIF", b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12"], ids=repr)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_data_are_ignored_or_refused(model, format, damage):
    content = to_bytes(draw_digit(7), format, exif=b"Exif\x00\x00" + damage)
    try:
        image = read_image(content)
    except DigitError as error:
        assert "EXIF data are damaged" in str(error)
    else:
        assert predicted_digit(model, image) == 7


def test_photo_with_uneven_light_and_noise(model):
    paper = np.linspace(0.9, 0.45, 300)[None, :] * np.linspace(1, 0.8, 300)[:, None]
    ink = np.asarray(draw_digit(4, mode="L").filter(ImageFilter.GaussianBlur(2)), dtype=float) / 255
    noise = np.random.default_rng(0).normal(0, 0.015, (300, 300))
    photo = Image.fromarray((np.clip(paper * (0.3 + 0.7 * ink) + noise, 0, 1) * 255).astype(np.uint8))
    assert predicted_digit(model, photo) == 4


def test_edge_of_a_shadow_is_not_a_stroke(model):
    light = np.where(np.add.outer(np.arange(300), np.arange(300)) < 330, 1.0, 0.6)
    pencil = 0.7 + 0.3 * np.asarray(draw_digit(4, mode="L"), dtype=float) / 255
    assert predicted_digit(model, Image.fromarray((230 * light * pencil).astype(np.uint8))) == 4


def test_sixteen_bits_per_pixel(model):
    values = 65535 - np.asarray(draw_digit(7, mode="L"), dtype=np.uint16) * 257
    assert predicted_digit(model, read_image(to_bytes(Image.fromarray(values)))) == 7


@pytest.mark.parametrize("white", [1.0, 255.0, 1023, 4095, 65535], ids=str)
def test_many_bits_per_pixel(model, white):
    values = np.asarray(draw_digit(7, mode="L"), dtype=np.float32) / 255 * white
    assert predicted_digit(model, Image.fromarray(values)) == 7
    assert predicted_digit(model, Image.fromarray(values.astype(np.int32))) == 7
    paper = white * (0.9 + 0.01 * np.random.default_rng(0).random((300, 300)))
    with pytest.raises(NoInkError):
        prepare(Image.fromarray(paper.astype(np.float32)))


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: 1.05 * a - 0.02,
        lambda a: 2 * a - 1,
        lambda a: (a - 0.1307) / 0.3081,
        lambda a: -3 - a,
        lambda a: 2 * a,
    ],
    ids=["overshoot", "signed", "normalised", "negative", "twice"],
)
def test_ranges_of_fractions(model, convert):
    values = np.asarray(draw_digit(7, mode="L"), dtype=np.float32) / 255
    assert predicted_digit(model, Image.fromarray(convert(values).astype(np.float32))) == 7


def test_hot_pixel_does_not_darken_a_scan(model):
    values = (3000 + 900 * (np.asarray(draw_digit(7, mode="L")) > 128)).astype(np.int32)
    values[3, 3] = 65535
    assert predicted_digit(model, Image.fromarray(values)) == 7


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "F", "I;16"])
def test_image_without_pixels_is_refused(mode, recwarn):
    with pytest.raises(DigitError, match="no pixels"):
        prepare(Image.new(mode, (0, 5)))
    assert not recwarn.list


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_file_of_several_images_is_refused(model, format):
    first, second = draw_digit(4), draw_digit(7)
    assert predicted_digit(model, read_image(to_bytes(first, format))) == 4
    with pytest.raises(DigitError, match="the file has 2 images"):
        read_image(to_bytes(first, format, save_all=True, append_images=[second]))


def test_tiny_digit_of_a_tiny_image_is_read(model):
    image = draw_digit(7).crop((40, 80, 140, 230)).resize((6, 7), Image.Resampling.BOX)
    small = Image.new("RGB", (12, 12), "white")
    small.paste(image, (3, 2))
    assert predicted_digit(model, small) == 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value, recwarn):
    with pytest.raises(DigitError, match="not finite"):
        prepare(Image.fromarray(np.full((30, 30), value, dtype=np.float32)))
    assert not recwarn.list


def test_digits_of_mnist_are_still_recognised(model, sample):
    images, labels = sample.eval_images[:100], sample.eval_labels[:100]
    prepared = torch.stack([prepare(Image.fromarray(image.numpy())) for image in images])
    correct = helpers.predict(model, prepared).argmax(1) == labels
    assert correct.float().mean() > 0.96


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (100, 100), 255), "no ink"),
        (Image.new("L", (100, 100), 0), "no ink"),
        (Image.new("RGBA", (50, 50), (0, 0, 0, 0)), "no ink"),
        (Image.new("L", (1, 1), 0), "no ink"),
        (
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)),
            "nearly everywhere|several",
        ),
    ],
    ids=["white", "black", "transparent", "one pixel", "noise"],
)
def test_images_without_a_digit_are_refused(image, message):
    with pytest.raises(DigitError, match=message):
        prepare(image)


def framed(
    digit: int, kind: str, box: tuple[int, ...], height: float = 0.4, ink=(20, 20, 25), **options
) -> Image.Image:
    """A digit in the middle of 300×300 pixels, and a frame around it."""
    mask = drawings.pen_mask(drawings.strokes(digit), 300, height, max(3, 25 * height))
    image = drawings.write(Image.new("RGB", (300, 300), "white"), mask, ink)
    getattr(ImageDraw.Draw(image), kind)(box, outline="black", width=4, **options)
    return image


@pytest.mark.parametrize(
    ("kind", "options"), [("rectangle", {}), ("ellipse", {}), ("rounded_rectangle", {"radius": 30})]
)
@pytest.mark.parametrize("digit", range(10))
def test_digit_in_a_frame_is_read(model, kind, options, digit):
    """The box of a form, a circle around the digit, the axes of a figure: straight or tilted."""
    image = framed(digit, kind, (50, 40, 250, 260), **options)
    ImageDraw.Draw(image).point((5, 5), fill="black")  # the first part of the image is dirt
    assert predicted_digit(model, image) == digit
    tilted = image.rotate(3, fillcolor="white", resample=Image.Resampling.BICUBIC)
    assert predicted_digit(model, drawings.photographed(tilted)) == digit


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("height", [0.15, 0.24])
def test_small_digit_in_a_box_of_thin_lines_is_read(model, digit, height):
    assert predicted_digit(model, framed(digit, "rectangle", (20, 20, 280, 280), height)) == digit


def test_frame_in_a_frame(model):
    image = draw_digit(0)
    for margin in (20, 30):
        ImageDraw.Draw(image).rectangle((margin, margin, 300 - margin, 300 - margin), outline="black", width=3)
    assert predicted_digit(model, image) == 0


def test_frame_without_a_digit_is_refused():
    empty = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(empty).rectangle((50, 40, 250, 260), outline="black", width=4)
    for image in (empty, framed(3, "rectangle", (50, 40, 250, 260), ink=(170, 170, 170))):
        with pytest.raises(DigitError, match="a frame without a separate digit inside"):
            prepare(image)


@pytest.mark.parametrize("box", [(50, 40, 250, 260), (20, 30, 280, 270)])
def test_two_framed_digits_are_refused(box):
    for size in ((600, 300), (300, 600)):
        two = Image.new("RGB", size, "white")
        two.paste(framed(3, "rectangle", box), (0, 0))
        two.paste(framed(7, "rectangle", box), (size[0] - 300, size[1] - 300))
        with pytest.raises(DigitError, match="several digits|wider than a digit"):
            prepare(two)


@pytest.mark.parametrize(
    "dirt",
    [
        [(84, 155, 96, 167)],
        [(89, 140, 90, 141), (89, 180, 90, 181)],  # far apart, together as high as a digit
        [(88, 140, 92, 180)],  # a stroke in a narrow ring: a slashed zero
    ],
)
def test_what_is_in_a_zero_is_no_digit_in_a_frame(model, dirt):
    image = draw_digit(0)
    for box in dirt:
        ImageDraw.Draw(image).rectangle(box, fill="black")
    assert predicted_digit(model, image) == 0


def test_dirt_in_the_loops_of_an_eight(model):
    image = drawings.write(Image.new("RGB", (300, 300), "white"), drawings.pen_mask(drawings.strokes(8), 300, 0.6, 9))
    places = np.random.default_rng(0).integers(0, 298, (40, 2))
    for x, y in places:
        ImageDraw.Draw(image).rectangle((x, y, x + 1, y + 1), fill="black")
    assert predicted_digit(model, image) == 8


@pytest.mark.parametrize(("margin", "message"), [(110, "filled shape"), (147, "too small"), (None, "filled shape")])
def test_filled_box_and_tiny_digit_are_refused(margin, message):
    image = Image.new("L", (300, 300), 255)
    if margin is None:
        ImageDraw.Draw(image).ellipse((110, 110, 190, 190), fill=0)
    else:
        ImageDraw.Draw(image).rectangle((margin, margin, 300 - margin, 300 - margin), fill=0)
    with pytest.raises(DigitError, match=message):
        prepare(image)


@pytest.mark.parametrize("degrees", [0, 5, 15, 45])
def test_sheet_with_table_all_around_is_not_a_digit(degrees):
    """It cannot be cut out if it is tilted; then it seems a blot on dark paper."""
    sheet = drawings.write(
        Image.new("RGB", (450, 450), (230, 230, 230)), drawings.pen_mask(drawings.strokes(7), 450, 0.4, 12)
    )
    table = Image.new("RGB", (900, 900), (90, 90, 90))
    sheet = sheet.rotate(degrees, expand=True, fillcolor=(90, 90, 90))
    table.paste(sheet, ((900 - sheet.width) // 2, (900 - sheet.height) // 2))
    with pytest.raises(DigitError, match="filled shape"):
        prepare(table)


@pytest.mark.parametrize("digit", [0, 2, 3, 4, 5, 6, 7, 8, 9])  # a cropped 1 may be a single colour
@pytest.mark.parametrize("pen", [8, 16])
def test_digit_that_touches_all_edges(model, digit, pen):
    mask = drawings.pen_mask(drawings.strokes(digit), 300, 0.6, pen)
    image = drawings.write(Image.new("RGB", (300, 300), "white"), mask).crop(mask.getbbox())
    assert predicted_digit(model, image) == digit


def test_digit_on_a_long_strip_is_refused():
    strip = Image.new("RGB", (4000, 60), "white")
    strip.paste(draw_digit(4).crop((60, 100, 160, 230)).resize((46, 60)), (2000, 0))
    with pytest.raises(DigitError, match="too small"):
        prepare(strip)


@pytest.mark.parametrize(("second", "position"), [(1, (100, 0)), (7, (0, 150))], ids=["beside", "below"])
def test_several_digits_are_refused(second, position):
    two = Image.new("RGB", (600, 600), "white")
    two.paste(draw_digit(4), position)
    two.paste(draw_digit(second).crop((0, 0, 150, 240)), (0, 0))
    with pytest.raises(DigitError, match="several digits"):
        prepare(two)


def test_line_is_wider_than_a_digit():
    line = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(line).line([(20, 150), (280, 150)], fill="black", width=12)
    with pytest.raises(DigitError, match="wider than a digit"):
        prepare(line)


@pytest.mark.parametrize("margins", [(60, 0, 0, 0), (60, 40, 0, 0), (40, 30, 50, 60)], ids=["left", "corner", "all"])
@pytest.mark.parametrize("digit", [0, 1, 4, 7])
def test_sheet_on_a_darker_table(model, digit, margins):
    left, top, right, bottom = margins
    photo = Image.new("RGB", (300 + left + right, 300 + top + bottom), (92, 60, 40))
    photo.paste(draw_digit(digit, paper=(240, 240, 233)), (left, top))
    assert predicted_digit(model, photo) == digit


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_shadow_is_not_a_table(model, share):
    pixels = np.asarray(draw_digit(4, paper=(230, 230, 230)), dtype=np.float32)
    pixels[:, : int(share * 300)] *= 0.7
    assert predicted_digit(model, Image.fromarray(pixels.astype(np.uint8))) == 4


@pytest.mark.parametrize("corner", range(4))
def test_dark_corners_of_a_photo_are_not_ink(model, corner):
    """A gradient of grey with a dark wedge, such as a finger or the lens hood."""
    photo = np.linspace(215, 140, 300)[None, :] * np.linspace(1, 0.85, 300)[:, None]
    photo = Image.fromarray(photo.astype(np.uint8))
    x, y = 300 * (corner % 2), 300 * (corner // 2)
    across, down = (40 if x == 0 else -40), (70 if y == 0 else -70)
    ImageDraw.Draw(photo).polygon([(x, y), (x + across, y), (x, y + down)], fill=30)
    for digit in range(10):
        mask = drawings.pen_mask(drawings.strokes(digit), 300, 0.5, 8)
        image = drawings.write(photo.convert("RGB"), mask, (40, 40, 45))
        assert predicted_digit(model, image) == digit


@pytest.mark.parametrize("shape", [(256, 200), (64, 64), (130, 256), (20, 28)])
def test_fast_filters_are_the_plain_ones(shape):
    random = np.random.default_rng(0)
    uneven = np.add.outer(np.linspace(0, 0.3, shape[0]), np.linspace(0, 0.2, shape[1]))
    strokes = random.random(shape) < 0.02
    width = max(3, max(shape) // 3)
    for paper in (np.zeros(shape), np.full(shape, 0.1), uneven):
        darkness = np.where(strokes, 0.9, paper).astype(np.float32)
        darkness[0, 0] = paper[0, 0]
        opening = ndimage.grey_opening(np.pad(darkness, width, mode="edge"), (width, width))
        plain = np.maximum(opening, ndimage.gaussian_filter(opening, width / 4))[width:-width, width:-width]
        fast = np.broadcast_to(preprocessing._paper(darkness), shape)
        np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-7)
    assert np.array_equal(preprocessing._majority(strokes), ndimage.median_filter(strokes, 3))
    ink = random.random(shape).astype(np.float32)
    for radius in (1, 2, 5):
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        plain = ndimage.grey_dilation(np.pad(ink, radius), footprint=x * x + y * y <= radius * radius + 0.5)
        assert np.array_equal(preprocessing._widened(ink, radius), plain)


def test_specks_do_not_matter(model):
    image = draw_digit(7)
    ImageDraw.Draw(image).ellipse((250, 20, 256, 26), fill="black")
    assert predicted_digit(model, image) == 7


def test_damaged_files_are_refused(tmp_path):
    good = to_bytes(draw_digit())
    path = tmp_path / "digit.png"
    path.write_bytes(good)
    assert read_image(path).size == (300, 300)
    for data, message in (
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PNG, JPEG, WebP, BMP, GIF and TIFF are read"),
        (good[: len(good) // 2], "damaged or cut off"),
        (to_bytes(draw_digit(), "JPEG")[:600], "damaged or cut off"),
        (b"x" * (MAX_BYTES + 1), "larger than 50 MB"),
    ):
        with pytest.raises(DigitError, match=message):
            read_image(data)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("side", [10_001, 13_400])  # above our limit; above Pillow's, which raises its own error
def test_decompression_bombs_are_not_opened(side, recwarn):
    bomb = to_bytes(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(DigitError, match="too many"):
        read_image(bomb)
    assert not recwarn.list
