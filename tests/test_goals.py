"""Whether a goal is reached follows from the trials in the ledger."""

from dataclasses import replace

import pytest

from s5.analysis.inspection import count_parameters
from s5.experiments.claims import KNOWN
from s5.experiments.ledger import read_ledger
from s5.reports.goals import GOALS, claims_table, find_claims, goals_table
from s5.reports.tables import earlier_claims_table
from tests.utils import make_trial

NET = GOALS[0]


def scored(accuracies, **changes):
    about = {"recipe": KNOWN["s5"].recipe.as_dict(), "split": "test", "data": "mnist", "epochs": 20} | changes
    return [make_trial(seed, accuracy=accuracy, **about) for seed, accuracy in enumerate(accuracies)]


GOOD = [99.5, 99.52, 99.55, 99.48, 99.51, 99.53, 99.5, 99.49, 99.54, 99.52]


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_claims_are_within_their_budgets(goal):
    if goal.variant:
        claim = KNOWN[goal.variant]
        assert count_parameters(claim.build()) < goal.parameters
        assert claim.recipe.epochs <= goal.epochs


@pytest.mark.parametrize(
    ("accuracies", "changes", "faults"),
    [
        (GOOD, {}, []),
        (GOOD[:1], {}, ["9 seeds missing", "no p-value"]),
        (GOOD[:9], {}, ["1 seed missing"]),
        ([a - 0.05 for a in GOOD], {}, ["0.036 short"]),
        ([99.43, 99.45, 99.46, 99.43, 99.5, 99.55, 99.57, 99.55, 99.59, 99.47], {}, []),  # the mean is the goal
        ([*GOOD[:9], 99.34], {}, ["0.004 short", "a seed below 99.4%"]),
        ([99.2, 99.8] * 5, {}, ["p = ", "a seed below 99.4%"]),
        (GOOD, {"epochs": 21}, ["over its budget"]),
        (GOOD, {"parameters": 18_215}, ["over its budget"]),
    ],
)
def test_shortfalls(accuracies, changes, faults):
    shortfalls = NET.shortfalls(scored(accuracies, **changes))
    assert len(shortfalls) == len(faults)
    for fault in faults:
        assert any(text.startswith(fault) for text in shortfalls)


def test_only_the_claimed_network_and_recipe_on_the_full_test_set_counts():
    good = scored(GOOD)
    others = [
        *scored(GOOD, split="validation"),
        *scored(GOOD, data="sample"),
        *scored(GOOD, recipe=replace(KNOWN["s5"].recipe, rotation=1.0).as_dict()),
        *scored(GOOD, network="conv 8 / 8 gap"),  # what the variant was before its network was changed
    ]
    assert find_claims(NET, [*others, *good]) == good
    assert find_claims(replace(NET, variant=""), good) == []


def test_seeds_trained_in_two_precisions_count_once():
    """The newer half of them is the claim; while it is not complete, the older."""
    older, newer = (
        scored(GOOD, precision=precision, time=time)
        for precision, time in (("float32", "2026-11-23T00:00:00+00:00"), ("bfloat16", "2026-11-26T00:00:00+00:00"))
    )
    assert find_claims(NET, [*older, *newer[:9]]) == older
    assert find_claims(NET, [*older, *newer]) == newer
    (row,) = earlier_claims_table([*older, *newer]).itertuples()
    assert (row.Seeds, row.Mean, row.Precision) == (10, "99.514", "float32")


def test_one_row_per_goal():
    table = goals_table(scored(GOOD)).set_index("Budget")
    assert list(table["Reached"]) == ["yes", "not claimed"] + ["not claimed yet"] * (len(GOALS) - 2)
    assert table.loc[NET.budget, "Mean"] == "99.514"
    assert goals_table(scored([99.5])).loc[0, "95% interval"] == "–"
    assert len(goals_table(read_ledger())) == len(GOALS)


def test_claims_table_shows_means_and_the_median_duration():
    trials = scored(GOOD)
    for trial in trials:
        trial["seconds"] = 300.0
    (row,) = claims_table(trials).itertuples(index=False)
    assert list(row)[1:] == ["18,214", "99.51 ± 0.02%", 10, 20, "5"]
