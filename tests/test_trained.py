"""The committed networks make the mistakes that the ledger records, and give the recorded logits."""

import json
import os
from functools import cache

import pytest
import torch
from torch.nn.functional import nll_loss

from helpers import evaluate, predict
from s5.experiments.ledger import read_ledger
from s5.inference.trained import load_trained, trained_networks, weights_file
from s5.reports import audit
from s5.training.augmentation import normalize
from s5.training.mnist import load_mnist
from tests.utils import ROOT

NETWORKS = trained_networks()


@cache
def runs_of(name: str) -> list[dict]:
    """The recorded runs that the weights may be of: there may be one in each precision."""
    runs = audit.runs_of(weights_file(name), read_ledger())
    assert runs, f"the ledger has no run of {name} from the seed of its weights"
    return runs


@pytest.fixture(scope="module")
def mnist():
    if "MNIST_ROOT" not in os.environ:
        pytest.skip("set MNIST_ROOT to score the networks on the full MNIST; the logits are compared without it")
    return load_mnist(allow_sample=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_makes_its_recorded_mistakes(name, mnist):
    """And has its recorded loss. Rounding differs between processors and may turn an image whose two best digits are
    equally likely; more than two such images among 10,000 would be other weights."""
    probabilities = predict(load_trained(name), mnist.eval_images).double()
    loss = nll_loss(probabilities.log(), mnist.eval_labels).item()
    turned = {}
    for run in runs_of(name):
        recorded = mnist.eval_labels.clone()
        recorded[[int(index) for index in run["mistakes"]]] = torch.tensor(list(run["mistakes"].values()))
        turned[run["curve"][-1]["eval_loss"]] = int((probabilities.argmax(1) != recorded).sum())
    nearest = min(turned, key=turned.get)
    assert turned[nearest] <= audit.MOST_TURNED
    assert loss == pytest.approx(nearest, rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_its_recorded_logits(name, sample):
    recorded = torch.tensor(json.loads((ROOT / audit.LOGITS).read_text())[name])
    with torch.inference_mode():
        logits = load_trained(name)(normalize(sample.eval_images[: len(recorded)]))
    torch.testing.assert_close(logits, recorded, rtol=audit.LOGIT_TOLERANCE, atol=audit.LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_the_sample(name, sample):
    """As well as the test images, within what a thousand images can tell."""
    _, correct = evaluate(load_trained(name), sample.eval_images, sample.eval_labels)
    expected = runs_of(name)[0]["accuracy"] / 100
    assert correct >= 1000 * expected - 5 * (1000 * expected * (1 - expected)) ** 0.5


def test_what_is_recorded_is_small():
    assert sum(weights_file(name).stat().st_size for name in NETWORKS) < 400_000
    assert (ROOT / audit.LOGITS).stat().st_size < 20_000


def test_logits_of_other_weights_are_not_close():
    logits = json.loads((ROOT / audit.LOGITS).read_text())[NETWORKS[0]]
    assert audit._are_close(logits, logits)
    assert not audit._are_close(logits, [[2 * value for value in row] for row in logits])
    assert not audit._are_close(logits, logits[:-1])
    assert not audit._are_close(logits, [[float("nan")] * 10] * len(logits))
    assert not audit._are_close(logits, "no table")
