"""What carries over from MNIST to Fashion-MNIST, from trials whose accuracies are made up."""

import pytest

from s5.experiments.claims import CLAIMS, FASHION_CLAIMS
from s5.experiments.variants import VARIANTS
from s5.reports import transfer
from tests.utils import claim_trials, make_trial

SGD = {"mnist": 99.4, "fashion": 91.0}
ACCURACIES = {  # on MNIST and on Fashion-MNIST, and the finding
    "original": (99.0, 93.0, "the other way round"),
    "flattened": (99.6, 93.0, "yes"),
    "separable": (99.6, 91.02, "not shown there"),
    "dropout": (99.41, 93.0, "only there"),
    "budget_8k": (99.41, 90.98, "not shown on either"),
}


@pytest.fixture
def trials():
    found = []
    for number, data in enumerate(SGD):
        names = {"augmentation": SGD[data]} | {name: values[number] for name, values in ACCURACIES.items()}
        for name, accuracy in names.items():
            options = {"variant": name, "recipe": VARIANTS[name].recipe.as_dict(), "precision": "bfloat16"}
            found += [make_trial(seed, accuracy + (seed % 3) / 100, data=data, **options) for seed in (100, 101, 102)]
    return found


def test_findings(trials):
    changes = transfer.transfer_changes(trials).set_index("variant")
    assert changes["finding"].to_dict() == {name: finding for name, (*_, finding) in ACCURACIES.items()}
    table = transfer.transfer_table(trials).set_index("Variant")
    assert table.loc["flattened", ["MNIST", "Fashion-MNIST"]].tolist() == ["99.61", "93.01"]
    assert table.loc["flattened", "Errors, Fashion-MNIST"].startswith("-22% (-")
    figure = transfer.plot_transfer(transfer.transfer_changes(trials))
    assert figure.text_alternative() == "Of 3 changes beyond seed noise on MNIST, 1 carries over to Fashion-MNIST"
    assert {text.get_text() for text in figure.axes[0].texts} == ACCURACIES.keys()


def test_the_order_of_the_variants(trials):
    assert "of the 6 variants' mean accuracies" in transfer.describe_order(trials)
    same = [trial for trial in trials if trial.variant in ("augmentation", "flattened")]
    assert "is 1.00 (Spearman" in transfer.describe_order(same)


def test_claims_stand_beside_those_on_mnist():
    found = claim_trials(FASHION_CLAIMS["s5"], [91.0, 92.0, 93.0]) + claim_trials(CLAIMS["s5"], [99.5] * 10)
    (row,) = transfer.transfer_claims_table(found).to_dict("records")
    assert row["Fashion-MNIST"] == "92.00 ± 1.00 (n=3)"
    assert row["MNIST"] == "99.50 ± 0.00 (n=10)"
