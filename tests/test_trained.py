"""The networks in results/weights: they make the mistakes that the ledger records."""

import pytest

from helpers import Net, evaluate
from s5.analysis.inspection import count_parameters
from s5.experiments.ledger import read_ledger
from s5.inference.trained import load_trained, trained_networks, weights_file
from s5.reports import check
from s5.reports.cards import trial_of_weights
from s5.training.checkpoint import CheckpointError

NETWORKS = trained_networks()


def test_networks_make_their_recorded_mistakes():
    found = list(check.weights_faults(read_ledger()))
    if any(text.startswith(check.NOTE) for text in found):
        pytest.skip("; ".join(found))
    assert found == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_the_sample(name, sample):
    """As well as the test images, within what a thousand images can tell."""
    _, correct = evaluate(load_trained(name), sample.eval_images, sample.eval_labels)
    expected = trial_of_weights(name, read_ledger()).accuracy / 100
    assert correct >= 1000 * expected - 5 * (1000 * expected * (1 - expected)) ** 0.5


def test_weights_are_small_and_the_largest_network_is_first():
    assert sum(weights_file(name).stat().st_size for name in NETWORKS) < 400_000
    sizes = [count_parameters(load_trained(name)) for name in NETWORKS]
    assert sizes == sorted(sizes, reverse=True)
    assert isinstance(load_trained(), Net)


def test_unknown_names_and_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="no trained network 'resnet'; there are .*s5"):
        load_trained("resnet")
    with pytest.raises(CheckpointError, match="network 's5': .* another architecture"):
        load_trained("s5", weights_file("below_1k"))
