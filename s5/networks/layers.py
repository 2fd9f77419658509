"""The networks of the experiments, built from a few blocks and heads. `Net` itself is in `helpers.py`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.training.augmentation import MEAN, STD, warp

MAX_SLANT = 1.5  # pixels sideways for each pixel down that `deskew` takes away at most
MIN_SCALE, MAX_SCALE = 0.6, 1.6  # of `deskew`


def conv_block(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution of an odd kernel size, which keeps the size of the map; BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def plain_conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    """3×3 convolution with a bias, ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


def separable_block(inputs: int, outputs: int) -> list[nn.Module]:
    """Depthwise 3×3 convolution, then a 1×1 convolution across channels (Howard et al., MobileNets, 2017).

    A single channel has nothing to separate: there it is an ordinary convolution.
    """
    if inputs == 1:
        return conv_block(inputs, outputs)
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    return [depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), pointwise, nn.BatchNorm2d(outputs), nn.ReLU()]


def gdconv_head(channels: int, side: int) -> list[nn.Module]:
    """Global depthwise convolution (a learnt weight for every position of a map), then a linear classifier."""
    return [nn.Conv2d(channels, channels, side, groups=channels, bias=False), nn.Flatten(), nn.Linear(channels, 10)]


def pytorch_example() -> nn.Module:
    """The network of github.com/pytorch/examples, mnist/main.py, as logits: 1,199,882 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


class Shared(nn.Module):
    """One residual convolution, applied again and again with a BatchNorm of its own each time.

    `uses` are the numbers of applications at 28×28, 14×14, and so on, after a `border` is cropped: depth costs
    computation but hardly any parameters. After recurrent convolutional networks (Liang and Hu, CVPR 2015).
    """

    def __init__(self, channels: int, uses: list[int], head: Callable, border: int = 0, separable: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d(-border), *conv_block(1, channels))
        groups = channels if separable else 1
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        if separable:
            self.conv = nn.Sequential(self.conv, nn.Conv2d(channels, channels, 1, bias=False))
        self.steps = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) for _ in range(count)) for count in uses
        )
        self.pool = nn.MaxPool2d(2)
        self.end = nn.Sequential(*head(channels))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for level, steps in enumerate(self.steps):
            features = self.pool(features) if level else features
            for step in steps:
                features = features + step(self.conv(features))
        return self.end(features)


class Cellular(Shared):
    """Without a first convolution: the image is the first channel of a state, whose other channels begin at 0.

    The BatchNorms of one resolution share scale and offset; each use has its own statistics. The state then takes most
    of the few parameters. After Randazzo et al., "Self-classifying MNIST digits", Distill 2020: distill.pub/2020/
    selforg/mnist.
    """

    def __init__(self, channels: int, uses: list[int], head: Callable, border: int = 0):
        super().__init__(channels, uses, head, border)
        self.stem = InitialState(channels, border)
        for (first, _), *others in self.steps:
            for norm, _ in others:
                norm.weight, norm.bias = first.weight, first.bias


class CellularSeparable(Cellular):
    """A 1×1 convolution across channels, then a depthwise 3×3 one; BatchNorm in the first use at a resolution only.

    The 1×1 convolution comes first, so that the image, which is a single channel, reaches every depthwise kernel. It
    takes so much fewer parameters that the state has more channels.
    """

    def __init__(self, channels: int, uses: list[int], head: Callable, border: int = 0):
        super().__init__(channels, uses, head, border)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        with torch.no_grad():
            depthwise.weight *= 2  # uses without BatchNorm depend on the norm, which Muon keeps
        self.conv = nn.Sequential(pointwise, depthwise)
        self.steps = nn.ModuleList(
            nn.ModuleList([first, *(nn.ReLU() for _ in others)]) for first, *others in self.steps
        )


class InitialState(nn.Module):
    """Images (N, 1, H, W), without a border, as the first of so many channels; the others are 0."""

    def __init__(self, channels: int, border: int = 0):
        super().__init__()
        self.channels, self.border = channels, border

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images, (-self.border,) * 4 + (0, self.channels - 1))

    def extra_repr(self) -> str:
        return f"{self.channels} channels, border {self.border}"


class Deskew(nn.Module):
    """Every digit upright, in the middle and equally high, by `deskew`; no parameters."""

    def __init__(self, height: float):
        super().__init__()
        self.height = height

    def forward(self, images: Tensor) -> Tensor:
        return deskew(images, self.height)

    def extra_repr(self) -> str:
        return f"height {self.height:g}"


def deskew(images: Tensor, height: float) -> Tensor:
    """Normalised images (N, 1, side, side), each sheared, moved and scaled: no slant, the centre of mass in the middle.

    `height` is what the standard deviation of the rows becomes, in pixels, where every row counts by its ink. All comes
    from the moments of the image up to the second order. The shear is the deslanting of LeCun et al. ("Gradient-based
    learning applied to document recognition", 1998); place and size go back to Casey ("Moment normalization of
    handprinted characters", 1970).
    """
    # Nothing here is what autocast computes in bfloat16, whose 8 bits are too few for differences of moments.
    ink = images * STD + MEAN  # from 0 to 1
    side = images.shape[-1]
    places = torch.arange(side, device=images.device) - (side - 1) / 2  # of rows and of columns
    by_row, by_column = ink.sum((1, 3)), ink.sum((1, 2))
    mass = by_row.sum(1, keepdim=True).clamp(min=1e-3)  # an empty image stays empty
    x, y = ((ink * places).sum(1, keepdim=True) / mass for ink in (by_column, by_row))
    from_row = places - y
    variance = (by_row * from_row**2).sum(1, keepdim=True) / mass
    covariance = (ink[:, 0] * from_row[:, :, None] * (places - x)[:, None]).sum((1, 2))[:, None] / mass
    slant = (covariance / variance.clamp(min=1e-3)).clamp(-MAX_SLANT, MAX_SLANT)
    scale = (variance.sqrt() / height).clamp(MIN_SCALE, MAX_SCALE)
    inverse = [scale, slant * scale, x / side * 2, torch.zeros_like(x), scale, y / side * 2]
    return (warp(ink, torch.stack(inverse, 2).view(-1, 2, 3)) - MEAN) / STD
