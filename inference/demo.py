"""Draw a digit in the browser, or upload a photo of one, and see the network's prediction.

python -m inference.demo                 open the page on http://127.0.0.1:7860, for this machine only
python -m inference.demo --host 0.0.0.0  make it available to the local network

In Jupyter or Colab: `from inference import demo; demo.launch()`. Requires `pip install -e ".[demo]"`. No data is
sent to other servers.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from training.command_line import Parser, run_command
from training.files import WEIGHTS

# Torch, matplotlib and gradio take seconds to load, so what needs them is imported inside functions: --help responds
# at once.

LAYERS = ["conv1.2", "conv1.5", "conv2.2"]  # ReLU layers whose feature maps are shown
MAX_UPLOAD = "50mb"
CANVAS, BRUSH = 280, 16  # pixels: side of the canvas, width of the brush
SELECT_BRUSH = """() => {
    const select = () => {
        const brush = document.querySelector('#sketch button[aria-label="Brush"]');
        brush ? brush.click() : setTimeout(select, 100);
    };
    select();
}"""
EMPTY = "Draw one digit, as large as you like."


class DemoError(RuntimeError):
    """The demo cannot start; the message says why and what to do."""


def build(weights: Path = WEIGHTS):
    """The page as a `gradio.Blocks`, not yet started. Raises DemoError if gradio or the weights are missing."""
    _protect_privacy()
    try:
        import gradio as gr
    except ImportError as error:
        raise DemoError(f'{error.name} is not installed: pip install -e ".[demo]"') from error
    import helpers
    from analysis import inspection
    from training.checkpoint import CheckpointError, load_weights

    try:
        model = load_weights(helpers.build(), weights)
    except CheckpointError as error:
        raise DemoError(str(error)) from error

    output = {"interactive": False, "buttons": []}
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
                        brush=gr.Brush(default_size=BRUSH, colors=["#000000"], color_mode="fixed"),
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
                prediction = gr.Markdown(EMPTY, elem_id="prediction")
                bars = gr.Label(label="Probabilities", num_top_classes=10, show_heading=False, elem_id="probabilities")
                prepared = gr.Image(label="The network's input: 28×28", height=200, elem_id="prepared", **output)
        maps = gr.Image(show_label=False, elem_id="maps", **output)
        live = {"show_progress": "hidden", "trigger_mode": "always_last", "api_name": False}
        for source in (sketch, photo):
            source.change(partial(read_digit, model), source, [prediction, bars, prepared, maps], **live)
        page.load(js=SELECT_BRUSH)
    return page


def read_digit(model, image):
    """The page's outputs for a drawing (the editor's dict), the path of a photo, or None.

    Returns Markdown text, probabilities {digit: probability}, and two PIL images: the network's input, enlarged, and
    its feature maps. All but the text are None if no digit is found.
    """
    from PIL import Image

    import helpers
    from analysis import plots
    from inference.preprocessing import DigitError, NoInkError, prepare, read_image
    from training.augmentation import normalize

    drawn = isinstance(image, dict)
    image = image["composite"] if drawn else image
    if image is None:
        return EMPTY, None, None, None
    try:
        prepared = prepare(image if drawn else read_image(image))
    except DigitError as error:
        empty = drawn and isinstance(error, NoInkError)
        return EMPTY if empty else f"No digit read: {error}.", None, None, None
    probabilities = helpers.predict(model, prepared[None])[0]
    digit = int(probabilities.argmax())
    text = f"## {digit}, with a probability of {probabilities[digit]:.1%}"
    enlarged = Image.fromarray(prepared.numpy()).resize((224, 224), Image.Resampling.NEAREST)
    maps = io.BytesIO()
    plots.plot_feature_maps(model, prepared, LAYERS, normalize).savefig(maps, format="png", dpi=100)
    by_digit = {str(number): value for number, value in enumerate(probabilities.tolist())}
    return text, by_digit, enlarged, Image.open(maps)


def launch(weights: Path = WEIGHTS, host: str = "127.0.0.1", port: int | None = None, **options):
    """Start the page and return gradio's (app, local address, public address); a notebook shows it below the cell.

    `options` are passed to `gradio.Blocks.launch`. Raises DemoError as `build` does, and if the port is in use.
    """
    page = build(weights)
    import gradio as gr

    settings = {
        "share": False,
        "max_file_size": MAX_UPLOAD,
        "footer_links": [],
        # The default theme would load fonts from Google's servers.
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }
    try:
        return page.launch(server_name=host, server_port=port, **(settings | options))
    except (OSError, OverflowError) as error:
        where = f"{host}, port {port}" if port else host
        raise DemoError(f"cannot listen on {where}: in use or invalid; choose another") from error


def _protect_privacy() -> None:
    """Switch off telemetry, and keep uploads in a temporary folder that is deleted when the program ends."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="demo-")
        atexit.register(folder.cleanup)
        os.environ["GRADIO_TEMP_DIR"] = folder.name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser("demo", __doc__, usage="python -m inference.demo [options]")
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: this machine only)")
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="of Net, safetensors (default: in results/)")
    options = parser.parse_args(arguments)
    try:
        launch(options.weights, options.host, options.port)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
