"""The page in docs/ in a real browser: digits drawn by mouse and touch, on a desktop and a phone, in light and dark."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from s5.deployment import page as generator
from s5.inference.predict import UNSURE
from s5.inference.preprocessing import prepare
from s5.inference.trained import trained_networks
from tests.drawings import on_table, pen_mask, ruled, strokes, write
from tests.utils import to_bytes

try:
    from playwright.sync_api import expect, sync_playwright

    missing = ""
except ImportError:
    missing = 'requires playwright: pip install -e ".[browser]"'

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(bool(missing) or CHROMIUM is None, reason=missing or "requires Chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SEND_FILE = """([kind, bytes]) => {
    const files = [new File([Uint8Array.from(bytes)], "photo.png", { type: "image/png" })];
    const data = { clipboardData: { files }, dataTransfer: { files } };
    document.dispatchEvent(Object.assign(new Event(kind, { cancelable: true }), data));
}"""
SCREENS = {"desktop": (1280, 900), "phone": (390, 844), "turned": (667, 375)}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens the page; in the end it must have had no error and requested nothing but itself."""
    contexts, requested, errors = [], [], []

    def open_page(screen="desktop", scheme="light", **options):
        width, height = SCREENS[screen]
        options |= {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(generator.PAGE.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in requested if not url.startswith(("data:", "blob:"))} == {generator.PAGE.as_uri()}
    assert not errors


def points_of(page, digit: int, style: int = 0, size: float = 0.7, every: int = 4) -> list:
    """The strokes of a digit, lists of points in pixels of the window; of a curve, one in `every`."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    place = np.array([box["x"], box["y"]]) + box["width"] / 2
    lines = [line if len(line) < 8 else line[::every] for line in strokes(digit, style)]  # curves have many points
    return [(place + size * box["width"] * line).tolist() for line in lines]


def draw(page, digit: int, **options) -> None:
    """Draw with the mouse."""
    for stroke in points_of(page, digit, **options):
        page.mouse.move(*stroke[0])
        page.mouse.down()
        for point in stroke[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def touch(page, digit: int) -> None:
    """Draw with a finger."""
    session = page.context.new_cdp_session(page)

    def send(kind: str, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    for stroke in points_of(page, digit):
        send("touchStart", stroke[0])
        for point in stroke[1:]:
            send("touchMove", point)
        send("touchEnd")


def wait_for_answers(page) -> None:
    while not page.evaluate("!frame && !asked && networks.every((_, number) => answers[number])"):
        page.wait_for_timeout(20)


@pytest.mark.parametrize(("screen", "write"), [("desktop", draw), ("phone", touch), ("turned", touch)])
def test_ten_digits_one_after_another(open_page, screen, write):
    is_phone = write is touch
    page = open_page(screen, has_touch=is_phone, is_mobile=is_phone)
    clear = page.get_by_role("button", name="Clear")
    for digit in range(10):
        write(page, digit)
        expect(page.locator("#digit")).to_have_text(str(digit))
        expect(page.locator("#sentence")).to_contain_text("with a probability of")
        clear.tap() if is_phone else clear.click()
        expect(page.locator("#digit")).to_have_text("?")
    assert screen != "phone" or page.evaluate("scrollY") == 0  # strokes do not scroll the page
    assert page.locator("#canvas").bounding_box()["height"] < 0.7 * SCREENS[screen][1]  # beside it one can scroll


def test_input_is_what_python_prepares(open_page):
    page = open_page()
    draw(page, 5)
    ink = np.array(page.evaluate("Array.from(drawing.pixels)"), dtype=np.uint8).reshape(256, 256)
    assert torch.equal(shown_input(page), prepare(Image.fromarray(255 - ink)))


def test_every_network_reads_the_drawing(open_page):
    page = open_page()
    draw(page, 7)
    choices = page.get_by_role("radio")
    expect(page.locator("#all b")).to_have_text(["7"] * len(trained_networks()))
    for number in range(choices.count()):
        choices.nth(number).check()
        expect(page.locator("#digit")).to_have_text("7")
        parameters = page.locator("#choices b").nth(number).inner_text().split()[0]
        expect(page.locator("#size")).to_have_text(parameters)
        assert page.locator(".maps canvas").count() > 5


def test_ink_does_not_wait_for_answers(open_page):
    page = open_page()
    page.evaluate("worker.postMessage = () => {}")
    draw(page, 1)
    expect(page.locator("#ink")).to_have_attribute("d", re.compile(r"M.+L"))


def test_samples_can_be_read_by_keyboard_and_undone(open_page):
    page = open_page()
    samples = page.locator("#samples button")
    for digit in range(10):
        samples.nth(digit).press("Enter")
        expect(page.locator("#all b")).to_have_text([str(digit)] * len(trained_networks()))
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit")).to_have_text("?")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#digit")).to_have_text("9")


def shown_input(page) -> torch.Tensor:
    """The network's input as the page shows it, uint8 (28, 28)."""
    wait_for_answers(page)
    shown = page.evaluate("Array.from(find('input').getContext('2d').getImageData(0, 0, 28, 28).data)")
    return torch.tensor(shown, dtype=torch.uint8).reshape(28, 28, 4)[..., 3]


def test_photos_are_chosen_dropped_and_pasted(open_page):
    page = open_page()
    for digit, event in ((3, None), (5, "drop"), (7, "paste")):
        sheet = write(ruled(300, 40), pen_mask(strokes(digit), 300, 0.5, 10))
        photo = on_table(sheet, (400, 300), 0.8, turn=8, tilt=15, seed=digit)
        content = to_bytes(photo, "PNG")
        if event is None:
            file = {"name": "photo.png", "mimeType": "image/png", "buffer": content}
            page.locator("input[type=file]").first.set_input_files(file)
        else:
            page.evaluate(SEND_FILE, [event, list(content)])
        expect(page.locator("#all b")).to_have_text([str(digit)] * len(trained_networks()))
        assert torch.equal(shown_input(page), prepare(photo))
    page.get_by_role("radio").first.check()
    expect(page.locator("#digit")).to_have_text("7")
    draw(page, 1)
    expect(page.locator("#digit")).to_have_text("1")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#digit")).to_have_text("7")


def test_photos_that_cannot_be_read_are_refused_with_the_reason(open_page):
    page = open_page()
    page.evaluate(SEND_FILE, ["drop", [1, 2, 3]])
    expect(page.locator("#sentence")).to_have_text("photo.png is no image that this browser can open.")
    ones = [line + np.array([x, 0]) for x in (-0.5, 0.5) for line in strokes(1)]
    two = write(ruled(300, 400), pen_mask(ones, 300, 0.6, 10))
    page.evaluate(SEND_FILE, ["drop", list(to_bytes(two, "PNG"))])
    refusal = "No digit read: several digits found: crop the image to one of them."
    expect(page.locator("#sentence")).to_have_text(refusal)


def test_an_answer_of_low_probability_is_called_unsure(open_page):
    page = open_page()
    page.get_by_role("button", name="Sample: 5").click()
    wait_for_answers(page)
    chances = [0, 0, 0, UNSURE - 0.2, 0, UNSURE - 0.01, 0, 0, 0, 0]
    page.evaluate("chances => { answers[selected] = { ...shown, probabilities: chances }; showAnswers(); }", chances)
    expect(page.locator("#digit")).to_have_text("5?")
    expect(page.locator("#sentence")).to_have_text("Unsure: 5 or 3")
    expect(page.locator("#all .best b")).to_have_text("5 or 3")


def test_strokes_after_a_stroke_that_was_cleared_are_kept(open_page):
    page = open_page()
    for stroke in points_of(page, 4):
        page.mouse.move(*stroke[0])
        page.mouse.down()
        page.mouse.move(*stroke[1])
        page.keyboard.press("Escape")
        page.mouse.move(*stroke[0])
        assert not page.evaluate("drawing.pixels.some((ink) => ink > 0)")
        page.mouse.up()
    draw(page, 4)
    expect(page.locator("#digit")).to_have_text("4")


def test_keyboard(open_page):
    page = open_page()
    draw(page, 4)
    expect(page.locator("#canvas")).to_be_focused()
    for key, count in (("z", 1), ("z", 0), ("z", 0)):
        page.keyboard.press(key)
        assert page.evaluate("content.strokes.length") == count
    count = len(trained_networks())
    for key, number in (("1", 0), ("ArrowRight", 1 % count), ("ArrowLeft", 0), ("ArrowLeft", count - 1)):
        page.keyboard.press(key)
        expect(page.get_by_role("radio").nth(number)).to_be_checked()
    draw(page, 4)
    for key, name, left in (("Enter", "Undo", 1), ("Space", "Clear", 0)):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
        page.keyboard.press(key)
        assert page.evaluate("content.strokes.length") == left


def test_refusals_are_said_in_words(open_page):
    page = open_page()
    expect(page.locator("#sentence")).to_contain_text("Draw one digit")
    expect(page.locator("#bars span")).to_have_text(["–"] * 10)
    box = page.locator("#canvas").bounding_box()
    for share in (0.2, 0.8):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.2 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.8 * box["height"], steps=5)
        page.mouse.up()
    expect(page.locator("#sentence")).to_contain_text("No digit read: several digits found")
    expect(page.locator("#bars span")).to_have_text(["–"] * 10)
    expect(page.locator("#announcement")).to_contain_text("several digits")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#announcement")).to_contain_text("1, with a probability of")


def test_probabilities_are_never_100_or_0_percent(open_page):
    texts = open_page().evaluate("[1, 0.9996, 0.9994, 0.5, 0.0006, 0.0004, 0].map(percent)")
    assert texts == [">99.9%", ">99.9%", "99.9%", "50.0%", "0.1%", "<0.1%", "<0.1%"]


@pytest.mark.parametrize(("screen", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_everything_can_be_seen(open_page, screen, scheme):
    page = open_page(screen, scheme)
    draw(page, 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen][0]
    for picture in (page.locator("#input"), page.locator(".maps canvas").first):
        picture.click(trial=True)  # nothing covers it
        assert picture.bounding_box()["width"] >= 56
    contrast = """element => {
        const light = (colour) => {
            const bands = colour.match(/[\\d.]+/g).slice(0, 3).map((band) => (band / 255) ** 2.2);
            return 0.2126 * bands[0] + 0.7152 * bands[1] + 0.0722 * bands[2];
        };
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const style = getComputedStyle(element);
        const colour = element.tagName === "svg" ? style.stroke : style.color;
        const [low, high] = [colour, getComputedStyle(behind).backgroundColor].map(light).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }"""
    selectors = (
        "button svg",
        "button",
        "h1",
        "#digit",
        "#sentence",
        "#bars span",
        "figcaption",
        "small",
        "footer p",
        "a",
    )
    for selector in selectors:
        assert page.locator(selector).first.evaluate(contrast) >= 4.5, selector
