"""Conversion of photos and drawings to images like those of MNIST."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import helpers
from s5.inference.preprocessing import DigitError, prepare, read_image
from s5.inference.trained import load_trained
from tests import drawings
from tests.utils import draw_digit, to_bytes

SIZE = 300


@pytest.fixture(scope="module")
def answer():
    """The digit that the network reads in an image, or why the image is refused."""
    model = load_trained()

    def answer(image: Image.Image) -> int | str:
        try:
            return int(helpers.predict(model, prepare(image)[None]).argmax())
        except DigitError as error:
            return str(error)

    return answer


def blank(brightness: int = 255) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), 3 * (brightness,))


def written(digit: int, height: float = 0.5, pen: float = 12) -> Image.Image:
    return drawings.write(blank(), drawings.pen_mask(drawings.strokes(digit), SIZE, height, pen))


def draw(image: Image.Image, kind: str, *box: int, **options) -> Image.Image:
    getattr(ImageDraw.Draw(image), kind)(box, **options)
    return image


def framed(image: Image.Image, kind: str = "rectangle", margin: int = 30) -> Image.Image:
    return draw(image, kind, margin, margin, SIZE - margin, SIZE - margin, outline="black", width=4)


def placed(image: Image.Image, size: tuple[int, int], *places: tuple[int, int], colour="white") -> Image.Image:
    """An image on a larger one, at each of the places."""
    larger = Image.new("RGB", size, colour)
    for place in places:
        larger.paste(image, place)
    return larger


def lit(image: Image.Image, light: np.ndarray) -> Image.Image:
    return Image.fromarray((np.asarray(image) * light[..., None]).astype(np.uint8))


def test_size_and_centre_are_those_of_mnist():
    image = prepare(draw_digit(4))
    assert image.dtype == torch.uint8
    assert image.shape == (28, 28)
    assert image.max() == 255
    rows, columns = (image > 64).any(1).nonzero().flatten(), (image > 64).any(0).nonzero().flatten()
    assert 19 <= rows[-1] - rows[0] + 1 <= 21
    assert columns[-1] - columns[0] + 1 < 20
    weights = image.double() / image.sum()
    for axis in (0, 1):
        assert abs((weights.sum(1 - axis) * torch.arange(28)).sum() - 13.5) <= 0.6


def test_size_position_and_colour_do_not_matter():
    expected = prepare(draw_digit(4, ink="white", paper="black")).float()
    larger = draw_digit(4).resize((1200, 1200), Image.Resampling.LANCZOS)
    for image in (draw_digit(4), larger, placed(draw_digit(4), (500, 400), (150, 30))):
        assert (prepare(image).float() - expected).abs().mean() < 12


PENS = {
    "inverted": {"ink": "white", "paper": "black"},
    "chalk": {"ink": "yellow", "paper": "darkgreen"},
    "same brightness": {"ink": (200, 30, 30), "paper": (30, 118, 30)},
    "thin": {"width": 4},
    "thick": {"width": 30},
    "pale": {"ink": (90, 90, 90), "paper": (150, 150, 150)},
    "white on none": {"ink": "white", "paper": (0, 0, 0, 0), "mode": "RGBA"},
    "black on none": {"ink": "black", "paper": (0, 0, 0, 0), "mode": "RGBA"},
}


@pytest.mark.parametrize("pen", PENS)
def test_pens_and_papers(answer, pen):
    for digit in (0, 1, 4, 7):
        assert answer(read_image(to_bytes(draw_digit(digit, **PENS[pen])))) == digit


X, Y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
DARK_CORNER = np.where(X / 40 + Y / 70 < 1, 0.12, 0.85 - X / 1000 - Y / 2000)
PHOTOS = {
    "uneven light": lambda digit: drawings.photographed(written(digit), noise=5, blur=2, shade=0.5),
    "edge of a shadow": lambda digit: lit(written(digit), np.where(X + Y < 200, 0.7, 0.9)),
    "dark corner": lambda digit: lit(written(digit), DARK_CORNER),
    "table on a side": lambda digit: placed(written(digit), (360, 300), (60, 0), colour=(92, 60, 40)),
    "table all around": lambda digit: placed(written(digit), (390, 390), (40, 30), colour=(92, 60, 40)),
    "speck": lambda digit: draw(written(digit), "ellipse", 250, 20, 256, 26, fill="black"),
    "circle": lambda digit: framed(written(digit, 0.4), "ellipse"),
    "two boxes": lambda digit: framed(framed(written(digit, 0.4)), margin=15),
    "tilted box": lambda digit: framed(written(digit, 0.4)).rotate(3, Image.Resampling.BICUBIC, fillcolor="white"),
    "small in a box": lambda digit: framed(written(digit, 0.15, 4), margin=20),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos_and_forms(answer, kind):
    assert [answer(PHOTOS[kind](digit)) for digit in range(10)] == list(range(10))


def test_digits_that_touch_all_edges(answer):
    for digit in (0, 2, 3, 4, 5, 6, 7, 8, 9):  # a cropped 1 may be a single colour
        mask = drawings.pen_mask(drawings.strokes(digit), SIZE, 0.6, 12)
        assert answer(drawings.write(blank(), mask).crop(mask.getbbox())) == digit


@pytest.mark.parametrize("side", [16, 28, 160])
def test_a_digit_that_fills_its_image_is_read_as_one_with_a_margin(answer, sample, side):
    right = {0: 0, side // 8: 0}
    for image, label in zip(sample.eval_images[:60].numpy(), sample.eval_labels[:60].tolist(), strict=True):
        image = Image.fromarray(255 - image)
        image = image.crop(Image.eval(image, lambda value: 255 - value).getbbox())
        scale = side / max(image.size)
        image = image.resize([max(1, round(scale * length)) for length in image.size], Image.Resampling.BICUBIC)
        for margin in right:
            larger = placed(image, (image.width + 2 * margin, image.height + 2 * margin), (margin, margin))
            right[margin] += answer(larger) == label
    assert right[0] >= max(right.values()) - 2 >= 56, right


def test_dirt_in_the_loops_of_a_digit_is_no_digit_in_a_frame(answer):
    assert answer(draw(draw_digit(0), "rectangle", 88, 140, 92, 180, fill="black")) == 0
    image = written(8, 0.6, 9)
    for x, y in np.random.default_rng(0).integers(0, 298, (40, 2)):
        draw(image, "rectangle", x, y, x + 1, y + 1, fill="black")
    assert answer(image) == 8


def test_digits_of_mnist_and_a_tiny_one_are_read(answer, sample):
    images, labels = sample.eval_images[:100].numpy(), sample.eval_labels[:100]
    assert sum(answer(Image.fromarray(image)) == label for image, label in zip(images, labels, strict=True)) > 96
    small = draw_digit(7).crop((40, 80, 140, 230)).resize((6, 7), Image.Resampling.BOX)
    assert answer(placed(small, (12, 12), (3, 2))) == 7


SHEET = written(7, 0.4).rotate(45, expand=True, fillcolor=(90, 90, 90))
NARROW = written(4).crop((80, 50, 220, 250))
REFUSED = [
    ("no pixels", Image.new("F", (0, 5))),
    ("no ink", blank()),
    ("no ink", Image.new("L", (1, 1))),
    ("no ink", Image.new("RGBA", (50, 50))),
    ("no ink", Image.fromarray((65535 * (0.9 + 0.01 * np.random.default_rng(0).random((90, 90)))).astype(np.uint16))),
    ("ink nearly everywhere", drawings.photographed(blank(240), noise=9)),
    ("a frame without a separate digit", framed(blank())),
    ("several digits", placed(framed(written(3, 0.4)), (400, 600), (0, 0), (50, 300))),
    ("several digits", placed(NARROW, (600, 600), (100, 100), (260, 100))),
    ("several digits", placed(NARROW, (600, 600), (100, 100), (110, 340))),
    ("wider than a digit", draw(blank(), "rectangle", 20, 144, 280, 156, fill="black")),
    ("a filled shape", draw(blank(), "ellipse", 110, 110, 190, 190, fill="black")),
    ("turned too far", placed(SHEET, (900, 900), (230, 230), colour=(90, 90, 90))),
    ("too small", draw(blank(), "rectangle", 147, 147, 153, 153, fill="black")),
    ("negative or infinite", Image.fromarray(np.full((30, 30), -1, np.float32))),
    ("negative or infinite", Image.fromarray(np.full((30, 30), np.nan, np.float32))),
]


@pytest.mark.parametrize(("reason", "image"), REFUSED, ids=range(len(REFUSED)))
def test_images_without_a_digit_are_refused(answer, reason, image):
    assert reason in str(answer(image))


@pytest.mark.parametrize("white", [1.0, 255.0, 1023, 4095, 65535], ids=str)
def test_many_bits_per_pixel(answer, white):
    values = np.asarray(draw_digit(7, mode="L"), dtype=np.float32) / 255 * white
    assert answer(Image.fromarray(values)) == 7
    assert answer(read_image(to_bytes(Image.fromarray(values.astype(np.uint16))))) == 7


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_file_of_several_images_is_refused(answer, format):
    assert answer(read_image(to_bytes(draw_digit(4), format))) == 4
    with pytest.raises(DigitError, match="the file has 2 images"):
        read_image(to_bytes(draw_digit(4), format, save_all=True, append_images=[draw_digit(7)]))


def test_transparent_palette_and_exif_rotation(answer):
    palette = draw_digit(7, mode="L").convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert answer(read_image(to_bytes(palette))) == 7
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90° clockwise
    turned = draw_digit(7).transpose(Image.Transpose.ROTATE_90)
    assert answer(read_image(to_bytes(turned, "JPEG", exif=exif.tobytes()))) == 7


def test_damaged_files_are_refused(tmp_path, recwarn):
    good = to_bytes(draw_digit())
    (tmp_path / "digit.png").write_bytes(good)
    assert read_image(tmp_path / "digit.png").size == (SIZE, SIZE)
    for data, message in (
        (b"", "the file is empty"),
        (b"hello", "PNG, JPEG, WebP, BMP, GIF and TIFF are read"),
        (good[: len(good) // 2], "damaged or cut off"),
        (to_bytes(draw_digit(), "JPEG")[:600], "damaged or cut off"),
        (to_bytes(draw_digit(), "PNG", exif=b"Exif\0\0II*\0"), "damaged or cut off"),
        (to_bytes(Image.new("1", (10_000, 10_000))), "too many pixels"),  # Pillow warns
        (to_bytes(Image.new("1", (13_400, 13_400))), "too many pixels"),  # and raises an error
    ):
        with pytest.raises(DigitError, match=message):
            read_image(data)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")
    assert not recwarn.list
