"""Draw a digit, or upload a photo of one, and see what the trained network makes of it.

python demo.py                 opens on http://127.0.0.1:7860, on this machine only
python demo.py --host 0.0.0.0  on the whole network that this machine is in

In Jupyter or Colab: `import demo; demo.launch()`. Wants `pip install -e ".[demo]"`. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import atexit
import io
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from analysis import inspection, plots
from training.augmentation import normalize
from training.checkpoint import CheckpointError, load_weights
from training.files import WEIGHTS

LAYERS = ["conv1.2", "conv1.5", "conv2.2"]  # after ReLU: what the first convolutions see
LARGEST = "50mb"  # of an upload
PEN = 16  # pixels, on a canvas of
CANVAS = 280
TAKE_THE_PEN = """() => {
    const take = () => {
        const pen = document.querySelector('#sketch button[aria-label="Brush"]');
        pen ? pen.click() : setTimeout(take, 100);
    };
    take();
}"""
EMPTY = "Draw one digit, as large as you like."


class DemoError(RuntimeError):
    """The demo cannot start; the message says why and what to do."""


def build(weights: Path = WEIGHTS):
    """The page as a `gradio.Blocks`, not started yet. Raises DemoError without gradio or without weights."""
    _stay_private()
    try:
        import gradio as gr
    except ImportError as error:
        raise DemoError(f'{error.name} is not installed: pip install -e ".[demo]"') from error
    import helpers

    try:
        model = load_weights(helpers.build(), weights)
    except CheckpointError as error:
        raise DemoError(str(error)) from error

    shown = {"interactive": False, "buttons": []}
    with gr.Blocks(title="One digit", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"# One digit\n{inspection.count_parameters(model):,} parameters, trained on MNIST. {EMPTY}")
        with gr.Row():
            with gr.Column(), gr.Tabs():
                with gr.Tab("Draw"):
                    sketch = gr.Sketchpad(
                        label="Your digit",
                        type="pil",
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        brush=gr.Brush(default_size=PEN, colors=["#000000"], color_mode="fixed"),
                        layers=False,
                        transforms=(),
                        buttons=[],
                        format="png",
                        elem_id="sketch",
                    )
                with gr.Tab("Photo"):
                    sources = ["upload", "webcam", "clipboard"]
                    photo = gr.Image(label="A photo of one digit", type="filepath", sources=sources, elem_id="photo")
            with gr.Column():
                said = gr.Markdown(EMPTY, elem_id="said")
                answer = gr.Label(label="Probabilities", num_top_classes=10, show_heading=False, elem_id="answer")
                seen = gr.Image(label="What the network receives: 28×28", height=200, elem_id="seen", **shown)
        maps = gr.Image(show_label=False, elem_id="maps", **shown)
        live = {"show_progress": "hidden", "trigger_mode": "always_last", "api_name": False}
        for source in (sketch, photo):
            source.change(partial(look, model), source, [said, answer, seen, maps], **live)
        page.load(js=TAKE_THE_PEN)
    return page


def look(model, image):
    """Words, probabilities and two pictures for the page, from a drawing (the editor's dict), a file's path or None."""
    from PIL import Image

    import helpers
    from inference.preprocessing import DigitError, prepare, read_image

    image = image["composite"] if isinstance(image, dict) else image
    if image is None:
        return EMPTY, None, None, None
    try:
        prepared = prepare(image if isinstance(image, Image.Image) else read_image(image))
    except DigitError as error:
        blank = isinstance(image, Image.Image) and "no ink" in str(error)
        return EMPTY if blank else f"Not read: {error}.", None, None, None
    probabilities = helpers.predict(model, prepared[None])[0]
    digit = int(probabilities.argmax())
    enlarged = Image.fromarray(prepared.numpy()).resize((224, 224), Image.Resampling.NEAREST)
    figure = plots.plot_feature_maps(model, prepared, LAYERS, normalize)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    words = f"## {digit}, with a probability of {probabilities[digit]:.1%}"
    answers = {str(number): value for number, value in enumerate(probabilities.tolist())}
    return words, answers, enlarged, Image.open(drawn)


def launch(weights: Path = WEIGHTS, host: str = "127.0.0.1", port: int | None = None, **options):
    """Start the page and return gradio's (app, local address, public address); in a notebook it appears below the cell.

    Raises DemoError, also where the port is taken. `options` go to `gradio.Blocks.launch`.
    """
    page = build(weights)
    import gradio as gr

    settings = {
        "share": False,
        "max_file_size": LARGEST,
        "footer_links": [],
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # not Google's servers'
    }
    try:
        return page.launch(server_name=host, server_port=port, **(settings | options))
    except (OSError, OverflowError) as error:
        where = f"{host}, port {port}" if port else host
        raise DemoError(f"cannot listen on {where}: taken, or no such place; choose another") from error


def _stay_private() -> None:
    """No telemetry; uploads are kept in a folder of their own that goes when the program ends."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="demo-")
        atexit.register(folder.cleanup)
        os.environ["GRADIO_TEMP_DIR"] = folder.name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: this machine only)")
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add(
        "--weights", type=Path, default=WEIGHTS, metavar="FILE", help="of Net, safetensors (default: those in results/)"
    )
    options = parser.parse_args(arguments)
    try:
        launch(options.weights, options.host, options.port)
    except DemoError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
