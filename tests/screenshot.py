"""Draw figures/page.png, the README's picture of docs/index.html: `python -m tests.screenshot`.

Requires Chromium and `pip install -e ".[browser]"`.
"""

import io
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from s5.deployment.page import PAGE
from s5.training.files import ROOT
from tests.test_page_in_browser import ARGUMENTS, CHROMIUM, draw

SIDE = 1120  # pixels


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": SIDE, "height": SIDE})
        page.goto(PAGE.as_uri())
        draw(page, 9, style=1, every=1)
        page.mouse.move(5, 5)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1000)  # milliseconds, until the bars of the probabilities have grown
        answer = page.locator("#digit").inner_text()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    if answer != "9":
        sys.exit(f"the network reads the 9 as {answer}: choose another drawing")
    picture = picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(ROOT / "figures" / "page.png", optimize=True)


if __name__ == "__main__":
    main()
