"""The family tree of the variants as one figure, with what each change gained."""

import math
from statistics import mean

import numpy as np
import pandas as pd

from s5.analysis.style import COLOURS, FAINT, INK, Picture, styled
from s5.experiments.ledger import by_variant
from s5.experiments.trial import Trial
from s5.experiments.variants import VARIANTS
from s5.reports.tables import compared_variants, seeds_text, trained

PLACES = {name: place for place, name in enumerate(VARIANTS)}
VERDICTS = {  # of `compared_variants`: colour, marker and meaning; better and worse are told apart if beyond noise
    "fewer errors": (COLOURS[0], "o", "fewer errors, beyond seed noise"),
    "more errors": (COLOURS[1], "o", "more errors, beyond seed noise"),
    "no": (FAINT, "o", "within seed noise"),
    "not tested": (FAINT, "$?$", "one seed: not tested"),
}
ROW, INDENT = 0.31, 0.055  # inches; fraction of the tree's width
CHANGE_LIMITS = (-80, 320)  # percent, the axis of changes contains them
CHANGE_TICKS = (-99.9, -99, -90, -70, -50, -30, 0, 40, 100, 900, 9900)  # percent


def map_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per variant that has trials, a parent before its children: what `plot_map` draws.

    Columns: name, parent (or None), depth (steps from the first variant), seeds
    (`tables.seeds_text`), mean (in percent); errors_mean, errors_low, errors_high (the change against the parent in
    percent, NaN if unknown) and verdict (a key of VERDICTS, "" without a parent).
    """
    groups, rows = by_variant(trials), []
    for name in sorted(groups, key=lambda name: [PLACES[each] for each in (*ancestors(name), name)]):
        row = {"name": name, "parent": VARIANTS[name].parent, "depth": len(ancestors(name))}
        row |= {"seeds": seeds_text(groups[name]), "mean": mean(trial.accuracy for trial in trained(groups[name]))}
        rows.append(row)
    compared = compared_variants(trials).set_index("variant")
    changes = compared[["errors_mean", "errors_low", "errors_high"]]
    direction = np.where(compared["errors_mean"] < 0, "fewer errors", "more errors")
    verdicts = compared["beyond_noise"].where(compared["beyond_noise"] != "yes", direction)
    return pd.DataFrame(rows).join(changes.assign(verdict=verdicts), on="name").fillna({"verdict": ""})


def ancestors(name: str) -> list[str]:
    """The variants from the first one to the parent."""
    parent = VARIANTS[name].parent
    return [*ancestors(parent), parent] if parent else []


@styled()
def plot_map(table: pd.DataFrame) -> Picture:
    """The tree on the left, and on the right the change of each variant's errors against its parent, with 95% interval.

    table: as `map_table` makes it.
    """
    figure = Picture(1.3 + ROW * len(table))
    tree, changes = figure.subplots(1, 2, width_ratios=[1, 1.2], sharey=True)
    places = {name: place for place, name in enumerate(table["name"])}
    for place, row in enumerate(table.itertuples()):
        _draw_branch(tree, place, places.get(row.parent), row)
        if row.verdict:
            _draw_change(changes, place, row)
    tree.set(xlim=(0, 1), ylim=(len(table) - 0.4, -0.6))
    tree.set_axis_off()
    shown = place_change([*CHANGE_LIMITS, *table[["errors_mean", "errors_low", "errors_high"]].to_numpy().ravel()])
    left, right = np.nanmin(shown), np.nanmax(shown)
    changes.set_xticks(place_change(CHANGE_TICKS), [f"{tick:+,}%" if tick else "0" for tick in CHANGE_TICKS])
    changes.set_xlim(left, right)
    changes.tick_params(left=False, labelleft=False)
    changes.spines["left"].set_visible(False)
    changes.grid(axis="y", visible=False)
    changes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    changes.set_xlabel("errors against the parent (95% interval), log scale")
    tree.set_title("Variant, mean validation accuracy (seeds)", fontsize=9, color=FAINT)
    used = [verdict for verdict in VERDICTS if verdict in set(table["verdict"])]
    for verdict in used:
        colour, marker, meaning = VERDICTS[verdict]
        changes.plot([], [], linestyle="none", marker=marker, color=colour, label=meaning)
    figure.legend(loc="outside lower center", ncols=len(used))
    tested = table[~table["verdict"].isin(["", "not tested"])]
    clear = (tested["verdict"] != "no").sum()
    found = f"The way to the final model: {clear} of {len(tested)} tested changes are beyond seed noise"
    figure.suptitle(found, x=0.01, ha="left")
    return figure


def place_change(change):
    """Where a change in percent is on the axis: the logarithm of the errors' ratio, at least that of -99.9%."""
    return np.log(np.maximum(1 + np.asarray(change) / 100, 0.001))


def _draw_branch(axes, place: int, start: int | None, row) -> None:
    """The line from the parent, which is at `start`, and the name."""
    x = INDENT * row.depth
    colour = VERDICTS[row.verdict][0] if row.verdict else INK
    if start is not None:
        corner = x - 0.6 * INDENT
        axes.plot([corner, corner], [start + 0.32, place], "-", color="#BBBBBB", linewidth=1, zorder=1)
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0}
        axes.annotate("", (x, place), (corner, place), arrowprops=arrow)
    text = f"{row.name}  {row.mean:.2f}% ({row.seeds})"
    axes.text(x + 0.012, place, text, va="center", fontsize=9, color=colour if row.verdict != "no" else INK)


def _draw_change(axes, place: int, row) -> None:
    """The interval of the change, if it is known, and its value."""
    colour, marker, _ = VERDICTS[row.verdict]
    low, high, middle = place_change([row.errors_low, row.errors_high, row.errors_mean])
    axes.plot([low, high], [place, place], "-", color=colour, linewidth=2)
    axes.plot(middle, place, linestyle="none", marker=marker, color=colour, markersize=6)
    interval = "" if math.isnan(low) else f" ({row.errors_low:+,.0f} to {row.errors_high:+,.0f})"
    is_right = middle > 0  # on the side where the line at 0 is not in the way
    end = np.nanmax([middle, high]) if is_right else np.nanmin([middle, low])
    style = {"va": "center", "ha": "left" if is_right else "right", "fontsize": 8.5, "color": colour}
    offset = (6 if is_right else -6, 0)
    axes.annotate(f"{row.errors_mean:+,.0f}%{interval}", (end, place), offset, textcoords="offset points", **style)
