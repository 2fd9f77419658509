"""A small drawing of a network: its maps from the image to the logits, and the parameters between them."""

from difflib import SequenceMatcher

from matplotlib.patches import Rectangle
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from s5.analysis.inspection import SIDE, black_images, count_new_parameters, count_parameters, run_observed
from s5.analysis.style import COLOURS, FAINT, INK, Picture, styled

KINDS = {nn.MaxPool2d: "max\npool", nn.AdaptiveAvgPool2d: "mean\n", nn.AvgPool2d: "mean\npool", nn.Linear: "linear\n"}
HEIGHT = 1.9  # inches, of a network


def plot_network(model):
    """The drawing of one network: see `plot_networks`."""
    total = f"{count_parameters(model):,} parameters (orange: of each layer), channels and size of each map"
    return plot_networks({total: (model, None)})


@styled()
def plot_networks(networks):
    """Maps as blocks, as high as the map and the wider the more channels; above, the kind and parameters of each layer.

    networks: `{title: (model, parent)}`, one below the other; blocks that the parent, a model or None, does not have
    are orange; without a parent the numbers of parameters are. Convolutions, pooling, dropout and linear layers are
    drawn, in the order in which they run; the parameters of the BatchNorm after a convolution ("BN") are counted with
    it, and those of a layer that is used again only once.
    """
    figure = Picture(HEIGHT * len(networks))
    panels = figure.subplots(len(networks), squeeze=False)[:, 0]
    for axes, (title, (model, parent)) in zip(panels, networks.items(), strict=True):
        blocks = _blocks(model)
        _draw(axes, blocks, parent and _blocks(parent))
        axes.set_title(title, fontsize=10)
    return figure


def _draw(axes, blocks, parent_blocks):
    """The blocks of one network; those that are not among the parent's, in their order, in another colour."""
    matches = SequenceMatcher(None, blocks, parent_blocks or blocks, autojunk=False).get_matching_blocks()
    ink = INK if parent_blocks else COLOURS[1]
    kept = {match.a + place for match in matches for place in range(match.size)}
    gap = 1 / len(blocks)
    for number, (kind, parameters, shape) in enumerate(blocks):
        x, colour = gap * (number + 0.5), COLOURS[0] if number in kept else COLOURS[1]
        axes.text(x, 1.52, kind, ha="center", va="bottom", color=FAINT, fontsize=7.5)
        axes.text(x, 1.44, f"{parameters:,}" if parameters else "", ha="center", va="top", color=ink, fontsize=8)
        channels, side = shape[0], shape[1] if len(shape) > 1 else 1
        width, height = gap * min(0.9, 0.08 + 0.09 * channels**0.5), max(0.04, side / SIDE)
        axes.add_patch(Rectangle((x - width / 2, (1 - height) / 2), width, height, color=colour, linewidth=0))
        size = f"\n{side}×{shape[2]}" if side > 1 else ""
        axes.text(x, -0.08, f"{channels}{size}", ha="center", va="top", color=INK, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(-0.5, 2.0))
    axes.set_axis_off()


def _blocks(model) -> list[tuple[str, int, tuple[int, ...]]]:
    """Kind, new parameters and output shape of the image and of each drawn layer, in the order of execution."""
    blocks, counted = [("image", 0, (1, SIDE, SIDE))], set()

    def add_block(name, module, inputs, output):
        parameters, shape = count_new_parameters(module, counted), tuple(output.shape[1:])
        names = [name for kind, name in KINDS.items() if isinstance(module, kind)]
        if isinstance(module, nn.Conv2d):
            kernel, is_depthwise = module.kernel_size[0], module.groups == module.in_channels > 1
            blocks.append((f"{'depthw.' if is_depthwise else 'conv'}\n{kernel}×{kernel}", parameters, shape))
        elif isinstance(module, _DropoutNd):
            blocks.append((f"dropout\n{module.p:g}", 0, shape))
        elif names:
            blocks.append((*names, parameters, shape))
        elif parameters or isinstance(module, nn.BatchNorm2d):
            kind, before, shape = blocks[-1]
            mark = " BN" if isinstance(module, nn.BatchNorm2d) else ""
            blocks[-1] = (kind.removesuffix(mark) + mark, before + parameters, shape)

    run_observed(model, black_images(model), nn.Module, add_block)
    return blocks
