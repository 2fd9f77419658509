"""What all figures share: the style, the `Picture` they return and the accuracy axis."""

import contextlib
import io

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from s5.training.files import write_file

# The colour-blind-safe palette of Okabe and Ito, "Color Universal Design" (2008), jfly.uni-koeln.de/color:
# blue, vermillion, green, purple, black, orange, sky blue. From the eighth line on, they are repeated dashed.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"]
INK, FAINT = "#222222", "#757575"

# Changes to matplotlib's defaults. The background is opaque white, so that dark text is legible in GitHub's light and
# dark themes.
STYLE = {
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")},
    **{"axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6},
    **{"font.size": 9, "axes.titlesize": 12, "figure.titlesize": 12, "lines.markersize": 4},
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS),
}
WIDTH = 9.0  # inches, of every figure
DPI = 200  # of a file; a notebook shows it at half its size, sharp on any screen
ACCURACY_TICKS = [0, 50, 80, 90, 95, 97, 98, 99, 99.5, 99.8, 100]


@contextlib.contextmanager
def styled():
    """STYLE on matplotlib's defaults, as a context manager or decorator; the caller's style is restored afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


class Picture(Figure):
    """A figure of WIDTH × `height` inches that a notebook displays as a PNG, with or without `%matplotlib inline`.

    Its titles are the text alternative for those who cannot see it.
    """

    def __init__(self, height):
        super().__init__(figsize=(WIDTH, height), layout="constrained")

    # Drawing and saving need STYLE too: matplotlib creates ticks when it first draws.
    draw = styled()(Figure.draw)
    savefig = styled()(Figure.savefig)

    def _repr_mimebundle_(self, **options):
        width, height = (round(100 * inches) for inches in self.get_size_inches())
        return {"image/png": self.png()}, {
            "image/png": {"width": width, "height": height, "alt": self.text_alternative()}
        }

    def png(self):
        """The content of a PNG file in 256 colours, a third as large as in all; its Description is the alternative."""
        drawn, file = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=DPI)
        info = PngInfo()
        info.add_itxt("Description", self.text_alternative())
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png", pnginfo=info)
        return file.getvalue()

    def text_alternative(self):
        """The figure's title and those of its axes, as one line."""
        titles = [self.get_suptitle(), *(axes.get_title(place) for axes in self.axes for place in ("left", "center"))]
        return ". ".join(" ".join(title.split()) for title in titles if title)


def save_figure(figure, path):
    """Write a `Picture` to `path` as a PNG, atomically. Raises OSError."""
    write_file(path, figure.png())


# --- Axes -------------------------------------------------------------------------------------------------------------


def stretch(accuracy):
    """The scale of accuracy axes: the logarithm of the error, with 0.1 added so that 100% is finite."""
    return -np.log10(np.maximum(100.1 - np.asarray(accuracy), 1e-9))


def unstretch(height):
    return 100.1 - 10.0 ** -np.asarray(height)


def accuracy_axis(axes, values, axis="y", limits=(98, 99.8), ticks=ACCURACY_TICKS):
    """Set a scale on which both 60% and 99.4% are legible; it contains `limits` and all `values`, in percent."""
    low, high = stretch([min(limits[0], *values), max(limits[1], *values)])
    getattr(axes, f"set_{axis}scale")("function", functions=(stretch, unstretch))
    getattr(axes, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(axes, f"set_{axis}lim")(*unstretch([low - 0.1, high + 0.1]))
    getattr(axes, f"set_{axis}label")("accuracy (%), log scale of the error")


def loss_axis(axes):
    """A logarithmic scale for losses, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def draw_threshold(axes, threshold, axis="y"):
    """A dashed line across `axes` at an accuracy in percent, with its value; nothing for None."""
    if threshold is None:
        return
    line = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}
    (axes.axhline if axis == "y" else axes.axvline)(threshold, **line)
    transform = axes.get_yaxis_transform() if axis == "y" else axes.get_xaxis_transform()
    position = (0.01, threshold) if axis == "y" else (threshold, 0.01)
    axes.annotate(f"{threshold:g}%", position, (2, 2), xycoords=transform, textcoords="offset points")
