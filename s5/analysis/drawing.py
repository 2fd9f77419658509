"""A small drawing of a network: its maps from the image to the logits, and the parameters between them."""

from matplotlib.patches import Rectangle
from torch import nn

from s5.analysis.inspection import SIDE, black_images, count_new_parameters, count_parameters, run_observed
from s5.analysis.style import COLOURS, FAINT, INK, WIDTH, Picture, styled

KINDS = {nn.MaxPool2d: "max\npool", nn.AdaptiveAvgPool2d: "mean\n", nn.AvgPool2d: "mean\npool", nn.Linear: "linear\n"}
HEIGHT = 1.9  # inches


@styled()
def plot_network(model, title=None):
    """Maps as blocks, as high as the map and the wider the more channels; above, the kind and parameters of each layer.

    Convolutions, pooling and linear layers are drawn, in the order in which they run; the parameters of the BatchNorm
    after a convolution are counted with it, and those of a layer that is used again only once.
    """
    blocks = _blocks(model)
    figure = Picture(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    gap = 1 / len(blocks)
    for number, (kind, parameters, shape) in enumerate(blocks):
        x = gap * (number + 0.5)
        axes.text(x, 1.52, kind, ha="center", va="bottom", color=FAINT, fontsize=7.5)
        axes.text(x, 1.44, f"{parameters:,}" if parameters else "", ha="center", va="top", color=COLOURS[1], fontsize=8)
        channels, side = shape[0], shape[1] if len(shape) > 1 else 1
        width, height = gap * min(0.9, 0.08 + 0.09 * channels**0.5), max(0.04, side / SIDE)
        axes.add_patch(Rectangle((x - width / 2, (1 - height) / 2), width, height, color=COLOURS[0], linewidth=0))
        size = f"\n{side}×{shape[2]}" if side > 1 else ""
        axes.text(x, -0.08, f"{channels}{size}", ha="center", va="top", color=INK, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(-0.5, 2.0))
    axes.set_axis_off()
    total = count_parameters(model)
    axes.set_title(title or f"{total:,} parameters (orange: of each layer), channels and size of each map", fontsize=10)
    return figure


def _blocks(model) -> list[tuple[str, int, tuple[int, ...]]]:
    """Kind, new parameters and output shape of the image and of each drawn layer, in the order of execution."""
    blocks, counted = [("image", 0, (1, SIDE, SIDE))], set()

    def add_block(name, module, inputs, output):
        parameters = count_new_parameters(module, counted)
        names = [name for kind, name in KINDS.items() if isinstance(module, kind)]
        if isinstance(module, nn.Conv2d):
            kernel, is_depthwise = module.kernel_size[0], module.groups == module.in_channels > 1
            kind = f"{'depthw.' if is_depthwise else 'conv'}\n{kernel}×{kernel}"
            blocks.append((kind, parameters, tuple(output.shape[1:])))
        elif names:
            blocks.append((*names, parameters, tuple(output.shape[1:])))
        elif parameters:  # BatchNorm
            kind, before, shape = blocks[-1]
            blocks[-1] = (kind, before + parameters, shape)

    run_observed(model, black_images(model), nn.Module, add_block)
    return blocks
