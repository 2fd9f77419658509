"""Draw figures/page.png, the README's picture of docs/index.html: `python -m tests.screenshot`.

Requires Chromium and `pip install -e ".[browser]"`.
"""

import io
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from analysis.style import save_picture
from experiments.audit import shown_page
from inference.page import PAGE
from tests.drawings import strokes
from tests.test_page_in_browser import ARGUMENTS, CHROMIUM
from training.files import ROOT

SIDE = 1120  # pixels
SIZE = 0.72  # height of the digit, as a share of the canvas
COLOURS = 128


def draw(page, digit: int) -> None:
    """Draw a digit with the mouse, in the middle of the canvas."""
    box = page.locator("#canvas").bounding_box()
    for line in strokes(digit, style=1, slant=0.15, wobble=0.04, seed=2):
        for index, (x, y) in enumerate(line):
            page.mouse.move(box["x"] + box["width"] * (0.5 + SIZE * x), box["y"] + box["height"] * (0.5 + SIZE * y))
            if index == 0:
                page.mouse.down()
        page.mouse.up()


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": SIDE, "height": SIDE})
        page.goto(PAGE.as_uri())
        draw(page, 9)
        page.mouse.move(5, 5)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1000)  # milliseconds, until the bars of the probabilities have grown
        answer = page.locator("#digit").inner_text()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    if answer != "9":
        sys.exit(f"the network reads the 9 as {answer}: choose another drawing")
    picture = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    save_picture(picture, ROOT / "figures" / "page.png", shown_page())


if __name__ == "__main__":
    main()
