"""A small drawing of a network: its maps from the image to the logits, and the parameters between them."""

from matplotlib.patches import Rectangle
from torch import nn

from s5.analysis.inspection import IMAGE, black_images, count_new_parameters, count_parameters, run_observed
from s5.analysis.style import COLOURS, FAINT, INK, WIDTH, Picture, styled

DRAWN = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
HEIGHT = 1.9  # inches
MAX_BLOCKS = 24


@styled()
def plot_network(model, title=None):
    """Maps as blocks, as high as the map and the wider the more channels; above, the kind and parameters of each layer.

    Convolutions, pooling and linear layers are drawn, in the order in which they run; the parameters of the BatchNorm
    after a convolution are counted with it, and those of a layer that is used again only once. Blocks in the middle of
    a network of more than 24 layers are left out.
    """
    blocks = _blocks(model)
    if len(blocks) > MAX_BLOCKS:
        blocks = [*blocks[: MAX_BLOCKS // 2], ("…", 0, None), *blocks[-MAX_BLOCKS // 2 + 1 :]]
    figure = Picture(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    gap = 1 / (len(blocks) + 1)
    for number, (kind, parameters, shape) in enumerate([("image", 0, IMAGE[1:]), *blocks]):
        x = gap * (number + 0.5)
        axes.text(x, 1.52, kind, ha="center", va="bottom", color=FAINT, fontsize=7.5)
        axes.text(x, 1.44, f"{parameters:,}" if parameters else "", ha="center", va="top", color=COLOURS[1], fontsize=8)
        if shape is None:
            continue
        channels, side = shape[0], shape[1] if len(shape) > 1 else 1
        width, height = gap * min(0.9, 0.08 + 0.09 * channels**0.5), max(0.04, side / 28)
        axes.add_patch(Rectangle((x - width / 2, (1 - height) / 2), width, height, color=COLOURS[0], linewidth=0))
        size = f"\n{side}×{shape[2]}" if len(shape) > 1 and side > 1 else ""
        axes.text(x, -0.08, f"{channels}{size}", ha="center", va="top", color=INK, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(-0.5, 2.0))
    axes.set_axis_off()
    total = count_parameters(model)
    axes.set_title(title or f"{total:,} parameters (orange: of each layer), channels and size of each map", fontsize=10)
    return figure


def _blocks(model) -> list[tuple[str, int, tuple[int, ...]]]:
    """Kind, new parameters and output shape of each drawn layer, in the order of execution."""
    blocks, counted = [], set()

    def add_block(name, module, inputs, output):
        if isinstance(module, DRAWN):
            blocks.append((_kind(module), count_new_parameters(module, counted), tuple(output.shape[1:])))
        elif blocks and (parameters := count_new_parameters(module, counted)):  # BatchNorm
            kind, before, shape = blocks[-1]
            blocks[-1] = (kind, before + parameters, shape)

    layers = [name for name, module in model.named_modules() if not list(module.children())]
    run_observed(model, black_images(model, IMAGE), layers, add_block)
    return blocks


def _kind(module) -> str:
    match module:
        case nn.Conv2d():
            kernel = module.kernel_size[0]
            depthwise = module.groups > 1 and module.groups == module.in_channels
            return f"{'depthw.' if depthwise else 'conv'}\n{kernel}×{kernel}"
        case nn.MaxPool2d():
            return "max\npool"
        case nn.Linear():
            return "linear\n"
        case _:
            return "mean\n"
