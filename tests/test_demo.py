"""The demo in a real browser: draw a digit with the mouse, upload a photo, read the answer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import helpers
from inference import demo
from tests.utils import draw_digit
from training.checkpoint import load_weights
from training.files import WEIGHTS

try:
    import gradio
    from playwright.sync_api import expect, sync_playwright

    lacking = ""
except ImportError as error:
    lacking = f'needs {error.name}: pip install -e ".[demo,browser]"'

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_gradio = pytest.mark.skipif("gradio" in lacking, reason=lacking)
needs_browser = pytest.mark.skipif(bool(lacking) or CHROMIUM is None, reason=lacking or "needs Chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
STROKES = {
    7: [[(-50, -70), (50, -70), (-10, 80)]],
    4: [[(20, -80), (-45, 25), (55, 25)], [(20, -80), (20, 85)]],
    0: [[(0, -75), (-45, -40), (-45, 40), (0, 75), (45, 40), (45, -40), (0, -75)]],
}


@pytest.fixture(scope="module")
def address():
    _, address, public = demo.launch(prevent_thread_lock=True, quiet=True)
    assert public is None or not public
    yield address
    gradio.close_all()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1200, "height": 1250})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector('#sketch button[aria-label="Brush"]')
    page.wait_for_timeout(1500)  # the canvas takes strokes only when the editor has been drawn
    yield page
    others = [url for url in asked if url.startswith("http") and not url.startswith(address)]
    assert not others, "nothing is fetched from anywhere else"
    page.close()


def draw_with_the_mouse(page, digit: int) -> None:
    box = page.query_selector("#sketch canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for stroke in STROKES[digit]:
        page.mouse.move(x + stroke[0][0], y + stroke[0][1])
        page.mouse.down()
        for across, down in stroke[1:]:
            page.mouse.move(x + across, y + down, steps=15)
        page.mouse.up()


@needs_browser
@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_read(page, digit, tmp_path):
    draw_with_the_mouse(page, digit)
    expect(page.locator("#said")).to_contain_text(f"{digit}, with a probability of", timeout=60_000)
    assert len(page.query_selector_all("#answer dt")) == 10
    expect(page.locator("#seen img")).to_be_visible()
    expect(page.locator("#maps img")).to_be_visible()
    page.screenshot(path=tmp_path / f"{digit}.png")


@needs_browser
@pytest.mark.parametrize(
    ("image", "words"),
    [(draw_digit(4), "4, with a probability of"), (Image.new("L", (80, 80), 255), "Not read: there is no ink")],
    ids=["photo", "empty"],
)
def test_a_photo_is_read_or_told_why_not(page, image, words, tmp_path):
    image.save(tmp_path / "photo.png")
    page.get_by_role("tab", name="Photo").click()
    page.set_input_files("#photo input[type=file]", tmp_path / "photo.png")
    expect(page.locator("#said")).to_contain_text(words, timeout=60_000)


@needs_gradio
def test_it_listens_on_this_machine_only(address):
    assert address.startswith("http://127.0.0.1:")


@needs_gradio
def test_a_port_that_cannot_be_had_is_told(address, capsys):
    for port in ("99999", address.rstrip("/").rsplit(":", 1)[1]):
        assert demo.main(["--port", port]) == 1
        assert f"demo.py: cannot listen on 127.0.0.1, port {port}: taken, or no such" in capsys.readouterr().err


def test_what_the_page_shows():
    model = load_weights(helpers.build(), WEIGHTS)
    words, probabilities, seen, maps = demo.look(model, {"composite": draw_digit(7)})
    assert words.startswith("## 7, with")
    assert max(probabilities, key=probabilities.get) == "7"
    assert seen.size == (224, 224)
    assert min(maps.size) > 200
    for nothing in (None, {"composite": None}, {"composite": Image.new("RGBA", (280, 280), (0, 0, 0, 0))}):
        assert demo.look(model, nothing) == (demo.EMPTY, None, None, None)


def test_lacking_packages_and_bad_weights_are_told(tmp_path, capsys, monkeypatch):
    if not lacking:
        assert demo.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
        assert "cannot read weights" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([]) == 1
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err


def test_help_is_quick_and_imports_neither_torch_nor_gradio():
    code = "import sys, demo; sys.exit(bool({'torch', 'gradio'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(demo.__file__).parent)
