"""Whether a goal is reached follows from the trials of its claim."""

from dataclasses import replace

import pytest

from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger
from s5.reports.goals import GOALS, claims_table, goals_table, parameters_text
from tests.utils import claim_trials

NET = GOALS[0]
GOOD = [99.5, 99.52, 99.55, 99.48, 99.51, 99.53, 99.5, 99.49, 99.54, 99.52]


def scored(accuracies, **changes):
    return claim_trials(CLAIMS["s5"], accuracies, **changes)


@pytest.mark.parametrize(
    ("accuracies", "changes", "faults"),
    [
        (GOOD, {}, []),
        (GOOD[:1], {}, ["9 seeds missing", "p = nan"]),
        ([accuracy - 0.05 for accuracy in GOOD], {}, ["0.036 short"]),
        ([99.43, 99.45, 99.46, 99.43, 99.5, 99.55, 99.57, 99.55, 99.59, 99.47], {}, []),  # the mean is the goal
        ([99.2, 99.8] * 5, {}, ["p = ", "a seed below 99.4%"]),
        (GOOD, {"epochs": 19}, ["more than 19 epochs"]),
        (GOOD, {"parameters": 18_214}, ["18,214 parameters", "18,214 numbers to store"]),
        (GOOD, {"variant": "below_500", "parameters": 500}, ["568 numbers to store"]),
    ],
)
def test_shortfalls(accuracies, changes, faults):
    shortfalls = replace(NET, **changes).shortfalls(scored(accuracies))
    assert [text[: len(fault)] for fault, text in zip(faults, shortfalls, strict=True)] == faults


def test_tables_of_goals_and_claims():
    trials = scored(GOOD, seconds=300.0)
    table = goals_table(trials).set_index("Budget")
    assert list(table["Reached"]) == ["yes", "not claimed"] + ["not claimed yet"] * (len(GOALS) - 2)
    assert list(table.loc[NET.budget, ["Mean", "Minimum"]]) == ["99.514", "99.48"]
    assert list(claims_table(trials).iloc[0])[1:] == ["18,214", "99.51 ± 0.02%", 10, 20, "5"]
    reached = goals_table(read_ledger()).set_index("Variant")["Reached"]
    assert reached["`below_500`"] == "0.010 short, 5 seeds missing, 568 numbers to store"


def test_what_must_be_stored_is_stated_where_it_differs():
    texts = {name: parameters_text(name) for name in CLAIMS}
    assert {name: text for name, text in texts.items() if "store" in text} == {
        "below_2k": "1,882 (1,986 to store)",
        "below_500": "496 (568 to store)",
    }
    assert texts["s5"] == "18,214"
