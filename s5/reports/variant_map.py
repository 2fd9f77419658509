"""The family tree of the variants as one figure, with what each change gained; the way to a variant as a line."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from s5.analysis.style import COLOURS, FAINT, INK, WIDTH, Picture, styled
from s5.experiments.ledger import by_variant
from s5.experiments.trial import Trial
from s5.experiments.variants import VARIANTS
from s5.reports.tables import compared_variants, seeds_text, trained

NUMBERS = {name: number for number, name in enumerate(VARIANTS, 1)}  # of a variant's section in the notebook
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

    Columns: number (of the section), name, parent ("": none), depth (steps from the first variant), seeds
    (`tables.seeds_text`), mean (in percent); errors, errors_low, errors_high (the change against the parent in
    percent, NaN if unknown) and verdict (a key of VERDICTS, "" without a parent).
    """
    groups, whole, rows = by_variant(trained(trials)), by_variant(trials), []
    compared = {row.variant: row for row in compared_variants(trials).itertuples()}
    for name in sorted(groups, key=lambda name: [NUMBERS[each] for each in (*ancestors(name), name)]):
        group, change = groups[name], compared.get(name)
        row = {"number": NUMBERS[name], "name": name, "parent": VARIANTS[name].parent or ""}
        row |= {"depth": len(ancestors(name)), "seeds": seeds_text(len(group), len(whole[name]))}
        row["mean"] = sum(trial.accuracy for trial in group) / len(group)
        for key in ("errors", "errors_low", "errors_high"):
            row[key] = getattr(change, key, math.nan)
        verdict = getattr(change, "beyond_noise", "")
        if verdict == "yes":
            verdict = "fewer errors" if row["errors"] < 0 else "more errors"
        rows.append(row | {"verdict": verdict})
    return pd.DataFrame(rows)


def ancestors(name: str) -> list[str]:
    """The variants from the first one to the parent."""
    path = []
    while (name := VARIANTS[name].parent) is not None:
        path.insert(0, name)
    return path


def path_to(name: str) -> str:
    """The way to a variant, e.g. "1 fully_connected → 2 pytorch_example → **3 first_experiment**", in Markdown."""
    return " → ".join([*(f"{NUMBERS[each]} {each}" for each in ancestors(name)), f"**{NUMBERS[name]} {name}**"])


@styled()
def plot_map(table: pd.DataFrame) -> Picture:
    """The tree on the left, and on the right the change of each variant's errors against its parent, with 95% interval.

    table: as `map_table` makes it. Raises ValueError if it is empty.
    """
    if table.empty:
        raise ValueError("nothing to plot: no variants")
    figure = Picture(figsize=(WIDTH, 1.3 + ROW * len(table)), layout="constrained")
    tree, changes = figure.subplots(1, 2, width_ratios=[1, 1.2], sharey=True)
    rows = {row.name: (place, row) for place, row in enumerate(table.itertuples(index=False))}
    for place, row in rows.values():
        _draw_branch(tree, place, row, rows)
        _draw_change(changes, place, row)
    tree.set(xlim=(0, 1), ylim=(len(table) - 0.4, -0.6))
    tree.set_axis_off()
    _change_axis(changes, table[["errors", "errors_low", "errors_high"]].to_numpy().ravel())
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
    if used:
        figure.legend(loc="outside lower center", ncols=len(used))
    tested = table[~table["verdict"].isin(["", "not tested"])]
    clear = (tested["verdict"] != "no").sum()
    found = f"The way to the final model: {clear} of {len(tested)} tested changes are beyond seed noise"
    figure.suptitle(found, x=0.01, ha="left")
    return figure


def _change_axis(axes, shown) -> None:
    """Set the limits and ticks of the axis of changes; it contains the values of `shown`, in percent, NaN ignored."""
    places = _place([*CHANGE_LIMITS, *shown])
    left, right = np.nanmin(places), np.nanmax(places)
    axes.set_xlim(left, right)
    ticks = [tick for tick in CHANGE_TICKS if left <= _place(tick) <= right]
    axes.set_xticks(_place(ticks), [f"{tick:+,}%" if tick else "0" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _place(change):
    """Where a change in percent is on the axis: the logarithm of the errors' ratio, at least that of -99.9%."""
    return np.log(np.maximum(1 + np.asarray(change) / 100, 0.001))


def _draw_branch(axes, place: int, row, rows: dict) -> None:
    """The line from the parent and the name."""
    x = INDENT * row.depth
    colour = VERDICTS[row.verdict][0] if row.verdict else INK
    if row.parent in rows:
        start = rows[row.parent][0]
        corner = x - 0.6 * INDENT
        axes.plot([corner, corner], [start + 0.32, place], "-", color="#BBBBBB", linewidth=1, zorder=1)
        axes.annotate(
            "",
            (x, place),
            (corner, place),
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0},
        )
    text = f"{row.number}  {row.name}  {row.mean:.2f}% ({row.seeds})"
    axes.text(x + 0.012, place, text, va="center", fontsize=9, color=colour if row.verdict != "no" else INK)


def _draw_change(axes, place: int, row) -> None:
    """The interval of the change, and its value."""
    if math.isnan(row.errors):
        return
    colour, marker, _ = VERDICTS[row.verdict]
    is_known = not math.isnan(row.errors_low)
    places = _place([row.errors_low, row.errors_high, row.errors])
    if is_known:
        axes.plot(places[:2], [place, place], "-", color=colour, linewidth=2)
    axes.plot(places[2], place, linestyle="none", marker=marker, color=colour, markersize=6)
    text = f"{row.errors:+,.0f}%" + (f" ({row.errors_low:+,.0f} to {row.errors_high:+,.0f})" if is_known else "")
    is_right = int(row.errors > 0)  # on the side where the line at 0 is not in the way
    end = places[is_right] if is_known else places[2]
    style = {"va": "center", "ha": "left" if is_right else "right", "fontsize": 8.5, "color": colour}
    axes.annotate(text, (end, place), (6 if is_right else -6, 0), textcoords="offset points", **style)
