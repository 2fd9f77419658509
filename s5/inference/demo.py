"""Upload a photo of a digit in the browser, or take one, and see what the network reads.

python -m s5.inference.demo                 open the page on http://127.0.0.1:7860, for this machine only
python -m s5.inference.demo --host 0.0.0.0  make it available to the local network

In Jupyter or Colab: `from inference import demo; demo.launch()`. Requires `pip install -e ".[demo]"`. No data is
sent to other servers, and photos are deleted when the program ends. To draw digits, open docs/index.html instead.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from pathlib import Path

from s5.training.command_line import Parser, path, run_command

# Torch and gradio take seconds to load, so what needs them is imported inside functions: --help responds at once.

MAX_UPLOAD = "50mb"
EMPTY = "Choose a photo of one digit, or take one."
DRAW = "To draw a digit, open `docs/index.html` of this project in a browser."
INPUT = "What the network sees: 28×28 pixels, as in MNIST"


class DemoError(RuntimeError):
    """The demo cannot start; the message says why and what to do."""


def build(network: str = "s5", weights: Path | None = None):
    """The page as a `gradio.Blocks`, not yet started, for a network of `s5.inference.trained`.

    Raises DemoError if gradio, the network or the weights are missing.
    """
    _protect_privacy()
    try:
        import gradio as gr
    except ImportError as error:
        raise DemoError(f'{error.name} is not installed: pip install -e ".[demo]"') from error
    from s5.analysis import inspection
    from s5.inference.trained import load_trained
    from s5.training.checkpoint import CheckpointError

    try:
        model = load_trained(network, weights)
    except (CheckpointError, ValueError) as error:
        raise DemoError(str(error)) from error

    with gr.Blocks(title="One digit", analytics_enabled=False, delete_cache=(600, 600)) as page:
        parameters = f"{inspection.count_parameters(model):,}"
        gr.Markdown(f"# One digit\nRead by a network of {parameters} parameters, trained on MNIST. {DRAW}")
        with gr.Row():
            photo = gr.Image(
                label="Photo of one digit",
                type="filepath",
                image_mode=None,  # the file as it is: converted, it would lose transparency and 16-bit values
                sources=["upload", "webcam", "clipboard"],
                buttons=[],
                height=320,
                elem_id="photo",
            )
            with gr.Column():
                prediction = gr.Markdown(EMPTY, elem_id="prediction")
                prepared = gr.Image(
                    show_label=False, interactive=False, buttons=[], height=230, visible=False, elem_id="prepared"
                )
                caption = gr.Markdown(INPUT, visible=False)
        live = {"show_progress": "hidden", "trigger_mode": "always_last", "api_name": False}

        def update(path):
            text, image = read_photo(model, path)
            shown = image is not None
            return text, gr.update(value=image, visible=shown), gr.update(visible=shown)

        photo.change(update, photo, [prediction, prepared, caption], **live)
    return page


def read_photo(model, path: str | None):
    """Markdown text for the photo at `path`, and the network's input as a PIL image, enlarged.

    Without a photo, or if no digit is found, the text says so and the image is None.
    """
    from PIL import Image

    import helpers
    from s5.inference import predict
    from s5.inference.preprocessing import DigitError

    if path is None:
        return EMPTY, None
    try:
        prepared = predict.read(path)
    except DigitError as error:
        return f"No digit was read: {error}.", None
    enlarged = Image.fromarray(prepared.numpy()).resize((224, 224), Image.Resampling.NEAREST)
    return in_words(helpers.predict(model, prepared[None])[0].tolist()), enlarged


def in_words(probabilities: list[float]) -> str:
    """The most probable digit and the next one, as Markdown; never "100%", which no prediction deserves."""
    (digit, first), (other, second) = sorted(enumerate(probabilities), key=lambda item: -item[1])[:2]
    percent = "more than 99.99%" if first > 0.9999 else f"{first:.2%}"
    return f"## {digit}\n\nProbability: {percent}. Next best: {other}, {second:.2%}."


def launch(
    network: str = "s5", weights: Path | None = None, host: str = "127.0.0.1", port: int | None = None, **options
):
    """Start the page and return gradio's (app, local address, public address); a notebook shows it below the cell.

    `options` are passed to `gradio.Blocks.launch`. Raises DemoError as `build` does, and if the port is in use.
    """
    page = build(network, weights)
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
    parser = Parser("demo", __doc__, usage="python -m s5.inference.demo [options]")
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: this machine only)")
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add("--network", default="s5", metavar="NAME", help="a file of results/weights without its suffix (default: s5)")
    add("--weights", type=path, metavar="FILE", help="other weights of the network, safetensors")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that photos are deleted then, too
    try:
        launch(options.network, options.weights, options.host, options.port)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
