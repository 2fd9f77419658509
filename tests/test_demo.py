"""The demo in a real browser: a digit drawn with the mouse, an uploaded photo, and the prediction."""

import shutil
import sys

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

    missing = ""
except ImportError as error:
    missing = f'requires {error.name}: pip install -e ".[demo,browser]"'

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
requires_gradio = pytest.mark.skipif("gradio" in missing, reason=missing)
requires_browser = pytest.mark.skipif(bool(missing) or CHROMIUM is None, reason=missing or "requires Chromium")
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
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    page.wait_for_selector('#sketch button[aria-label="Brush"]')
    page.wait_for_timeout(1500)  # the canvas accepts strokes only after the editor is rendered
    yield page
    others = [url for url in requested if url.startswith("http") and not url.startswith(address)]
    assert not others, "requests to other servers"
    page.close()


def draw_with_the_mouse(page, digit: int) -> None:
    box = page.query_selector("#sketch canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for stroke in STROKES[digit]:
        page.mouse.move(x + stroke[0][0], y + stroke[0][1])
        page.mouse.down()
        for right, down in stroke[1:]:
            page.mouse.move(x + right, y + down, steps=15)
        page.mouse.up()


@requires_browser
@pytest.mark.parametrize("digit", STROKES)
def test_drawn_digit(page, digit, tmp_path):
    draw_with_the_mouse(page, digit)
    expect(page.locator("#prediction")).to_contain_text(f"{digit}, with a probability of", timeout=60_000)
    assert len(page.query_selector_all("#probabilities dt")) == 10
    expect(page.locator("#prepared img")).to_be_visible()
    expect(page.locator("#maps img")).to_be_visible()
    page.screenshot(path=tmp_path / f"{digit}.png")


@requires_browser
@pytest.mark.parametrize(
    ("image", "text"),
    [(draw_digit(4), "4, with a probability of"), (Image.new("L", (80, 80), 255), "No digit read: no ink")],
    ids=["digit", "empty"],
)
def test_uploaded_photo(page, image, text, tmp_path):
    image.save(tmp_path / "photo.png")
    page.get_by_role("tab", name="Photo").click()
    page.set_input_files("#photo input[type=file]", tmp_path / "photo.png")
    expect(page.locator("#prediction")).to_contain_text(text, timeout=60_000)


@requires_gradio
def test_listens_on_this_machine_only(address):
    assert address.startswith("http://127.0.0.1:")


@requires_gradio
def test_unavailable_ports_are_reported(address, capsys):
    for port in ("99999", address.rstrip("/").rsplit(":", 1)[1]):
        assert demo.main(["--port", port]) == 1
        assert f"demo: cannot listen on 127.0.0.1, port {port}: in use or invalid" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model():
    return load_weights(helpers.build(), WEIGHTS)


def test_outputs_for_a_drawing(model):
    text, probabilities, prepared, maps = demo.read_digit(model, {"composite": draw_digit(7)})
    assert text.startswith("## 7, with")
    assert max(probabilities, key=probabilities.get) == "7"
    assert prepared.size == (224, 224)
    assert min(maps.size) > 200
    for empty in (None, {"composite": None}, {"composite": Image.new("RGBA", (280, 280), (0, 0, 0, 0))}):
        assert demo.read_digit(model, empty) == (demo.EMPTY, None, None, None)


def test_outputs_for_an_empty_photo(model, tmp_path):
    Image.new("L", (80, 80), 255).save(tmp_path / "photo.png")
    text, *others = demo.read_digit(model, str(tmp_path / "photo.png"))
    assert text.startswith("No digit read: no ink")
    assert others == [None, None, None]


@requires_gradio
def test_missing_weights_are_reported(tmp_path, capsys):
    assert demo.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "demo: cannot read weights" in capsys.readouterr().err


def test_missing_gradio_is_reported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([]) == 1
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err
