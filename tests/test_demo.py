"""The demo in a real browser: uploaded photos and what is read, on a desktop and on a phone."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageOps

from s5.inference import demo
from s5.inference.trained import load_trained
from tests import drawings
from tests.utils import ROOT, draw_digit

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
SCREENS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844}}


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


@pytest.fixture(params=SCREENS)
def page(request, browser, address):
    page = browser.new_page(viewport=SCREENS[request.param])
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    page.wait_for_selector("#photo input[type=file]", state="attached", timeout=60_000)
    yield page
    others = [url for url in requested if url.startswith("http") and not url.startswith(address)]
    assert not others, "requests to other servers"
    page.close()


@requires_browser
def test_one_photo_after_another(page, tmp_path):
    """Each photo is read, also after the one before was removed or refused."""
    expect(page.get_by_text("docs/index.html")).to_be_visible()
    mask = drawings.pen_mask(drawings.strokes(3), 300, 0.55, 9)
    opacity = ImageOps.invert(draw_digit(4).convert("L"))
    transparent = Image.merge("LA", (Image.new("L", opacity.size), opacity))
    photos = {
        "7": draw_digit(7),
        "No digit was read: no ink": Image.new("L", (80, 80), 255),
        "3": drawings.write(drawings.ruled(300, 60), mask),
        "4": transparent,
    }
    for number, (text, image) in enumerate(photos.items()):
        image.save(tmp_path / f"{number}.png")
        page.set_input_files("#photo input[type=file]", tmp_path / f"{number}.png")
        expect(page.locator("#prediction")).to_contain_text(text, timeout=60_000)
        picture = page.locator("#prepared img")
        if text.isdigit():
            expect(picture).to_be_visible()
            box = picture.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= page.viewport_size["width"]
        else:
            expect(picture).to_be_hidden()
        page.get_by_label("Remove Image").click()
        expect(page.locator("#prediction")).to_contain_text(demo.EMPTY, timeout=60_000)


@requires_gradio
def test_listens_on_this_machine_only(address):
    assert address.startswith("http://127.0.0.1:")


@requires_gradio
def test_unavailable_ports_are_reported(address, capsys):
    for port in ("99999", address.rstrip("/").rsplit(":", 1)[1]):
        assert demo.main(["--port", port]) == 1
        assert f"demo: cannot listen on 127.0.0.1, port {port}: in use or invalid" in capsys.readouterr().err


def test_outputs_for_photos(tmp_path):
    model, path = load_trained(), str(tmp_path / "photo.png")
    draw_digit(7).save(path)
    text, prepared = demo.read_photo(model, path)
    assert text.startswith("## 7\n\nProbability: ")
    assert prepared.size == (224, 224)
    Image.new("L", (80, 80), 255).save(path)
    text, prepared = demo.read_photo(model, path)
    assert text.startswith("No digit was read: no ink")
    assert prepared is None
    assert demo.read_photo(model, None) == (demo.EMPTY, None)


def test_nothing_is_certain():
    words = demo.in_words([1.0] + 9 * [0.0])
    assert words == "## 0\n\nProbability: more than 99.99%. Next best: 1, 0.00%."
    assert "Probability: 60.00%. Next best: 9, 40.00%." in demo.in_words([0.6] + 8 * [0.0] + [0.4])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to handle")
@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "sys.exit(3)"])
def test_no_photo_is_left_behind(end, tmp_path):
    code = f"""
import os, pathlib, signal, sys, time
from s5.inference import demo

def launch(*options):
    demo._protect_privacy()
    folder = pathlib.Path(os.environ["GRADIO_TEMP_DIR"])
    folder.joinpath("photo.png").write_bytes(b"private")
    print(folder)
    {end}

demo.launch = launch
demo.main([])
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("GRADIO_TEMP_DIR", None)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.strip().startswith(str(tmp_path)), result.stderr
    assert list(tmp_path.iterdir()) == []


@requires_gradio
def test_missing_weights_and_networks_are_reported(tmp_path, capsys):
    assert demo.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "demo: cannot read weights" in capsys.readouterr().err
    assert demo.main(["--network", "resnet"]) == 1
    assert "demo: there is no trained network 'resnet'" in capsys.readouterr().err


def test_missing_gradio_is_reported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([]) == 1
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err
