"""What notebooks show: tables without an index, what is long folded, and a figure that grows while a network trains."""

import html
import itertools
import re
import time
from collections.abc import Callable

import pandas as pd
from IPython.display import Markdown, display
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from s5.analysis.style import Picture

BAR = 20  # characters
SECONDS_BETWEEN = 2  # drawings of a live figure
WIDE, SHORT = 8, 24  # columns, characters: in tables of so many columns, shorter cells are not wrapped
PRE = "white-space: pre; overflow-x: auto; font-family: monospace"


class Table:
    """A DataFrame as a notebook and print show it: no index, no backticks of Markdown, and thousands with commas."""

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame.map(lambda value: value.replace("`", "") if isinstance(value, str) else value)
        self.options = {"index": False, "formatters": dict.fromkeys(frame.select_dtypes("integer"), "{:,}".format)}

    def _repr_html_(self) -> str:
        # Notebooks align everything to the right, and wrap even numbers; text is easier to read from the left.
        styles = {"<th": [], "<td": []}
        for name in self.frame:
            cells = self.frame[name].astype(str)
            is_number = cells.str.fullmatch("[-+−]?[0-9.,e-]+%?|–").all()
            styles["<th"].append(f"text-align: {'right' if is_number else 'left'}")
            is_kept = len(self.frame.columns) >= WIDE and cells.str.len().max() <= SHORT
            styles["<td"].append(styles["<th"][-1] + ("; white-space: nowrap" if is_kept else ""))
        rows = self.frame.to_html(border=0, **self.options).replace(' style="text-align: right;"', "")
        of_cells = {kind: itertools.cycle(each) for kind, each in styles.items()}
        return re.sub("(<t[hd])>", lambda match: f'{match[1]} style="{next(of_cells[match[1]])}">', rows)

    def __repr__(self) -> str:
        return self.frame.to_string(**self.options)


class Code(str):
    """Python code; a notebook shows it highlighted."""

    def _repr_html_(self) -> str:
        style = f"{PRE}; color: #222222; padding: 0.5em"  # on a light background, in dark themes too
        return highlight(self, PythonLexer(), HtmlFormatter(noclasses=True, prestyles=style))


class Text(str):
    """Text in a fixed font; a notebook does not wrap its lines."""

    def _repr_html_(self) -> str:
        return f'<pre style="{PRE}">{html.escape(self)}</pre>'

    __repr__ = str.__str__


class Folded:
    """Text, `Code` or DataFrames that a notebook shows when the title is clicked."""

    def __init__(self, title: str, *parts: str | pd.DataFrame):
        kinds = {pd.DataFrame: Table, str: Text}
        self.title, self.parts = title, [kinds.get(type(part), type(part))(part) for part in parts]

    def _repr_html_(self) -> str:
        summary = f'<summary style="display: list-item">{html.escape(self.title)}</summary>'  # with its triangle
        return f"<details>{summary}{''.join(part._repr_html_() for part in self.parts)}</details>"

    def __repr__(self) -> str:
        return f"{self.title}: open in a notebook"


class LiveFigure:
    """For `fit(progress=...)`: a figure that is drawn again after every epoch, with a bar in its title.

    Not after epochs that follow within `SECONDS_BETWEEN`: on a GPU, drawing would take as long as training.
    """

    def __init__(self, name: str, epochs: int, draw: Callable[[list[dict], str], Picture]):
        """`draw` makes the figure of a history and a title; `epochs` is the length of the whole run."""
        self.name, self.epochs, self.draw = name, epochs, draw
        self.start = self.drawn = time.monotonic()
        self.handle = display(Markdown(f"*{name}: the first of {epochs} epochs …*"), display_id=True)

    def __call__(self, history: list[dict]) -> None:
        """Show the epochs so far; the title of the last one is the figure's own. Nothing outside a notebook."""
        if self.handle is None:
            return
        done, now = len(history), time.monotonic()
        if done < self.epochs and now - self.drawn < SECONDS_BETWEEN:
            return
        self.drawn = now
        minutes, seconds = divmod(round((now - self.start) / done * (self.epochs - done)), 60)
        filled = round(BAR * done / self.epochs)
        bar = "█" * filled + "░" * (BAR - filled)
        left = f"{self.name}  {bar}  {done} of {self.epochs} epochs, {minutes}:{seconds:02} to go"
        self.handle.update(self.draw(history, left if done < self.epochs else ""))


def epoch_table(history: list[dict], split: str = "validation") -> pd.DataFrame:
    """The epochs of a history, one row each, losses per image and accuracies in percent."""
    formats = {
        "Epoch": ("epoch", "{}"),
        "Rate at the end": ("learning_rate", "{:.5f}"),
        "Train loss": ("train_loss", "{:.4f}"),
        "Train accuracy": ("train_accuracy", "{:.2f}"),
        f"{split.capitalize()} loss": ("eval_loss", "{:.4f}"),
        f"{split.capitalize()} accuracy": ("eval_accuracy", "{:.2f}"),
        "Seconds": ("seconds", "{:.1f}"),
    }
    frame = pd.DataFrame(history)
    columns = {name: frame[key].map(form.format, na_action="ignore") for name, (key, form) in formats.items()}
    return pd.DataFrame(columns).fillna("–")
