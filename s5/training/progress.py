"""What is seen of a training while it runs: a bar of the batches, and a line of text per epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor
from tqdm import tqdm

from s5.training.mnist import MnistData


class Epoch(TypedDict):
    """An entry of the history that `helpers.fit` returns. Losses are per image, accuracies in percent."""

    epoch: int  # from 1
    learning_rate: float  # after the last batch
    train_loss: float
    train_accuracy: float
    eval_loss: float | None  # None in epochs that are not evaluated, as are the next two
    eval_accuracy: float | None
    eval_correct: int | None  # images
    seconds: float


def batch_bar(batches: Sequence[Tensor], shown: bool) -> tqdm:
    """The batches of an epoch with a bar that vanishes at its end; none if TQDM_DISABLE is set."""
    hidden = not shown or "TQDM_DISABLE" in os.environ  # disable=False would ignore TQDM_DISABLE
    return tqdm(batches, leave=False, disable=hidden)


def epoch_line(epoch: dict, epochs: int, data: MnistData) -> str:
    """One line of the training log: an entry of `fit`'s history as text."""
    split = data.split if data.source == "mnist" else f"{data.source} {data.split}"
    trained = f"train loss {epoch['train_loss']:.4f} accuracy {epoch['train_accuracy']:.2f}%"
    evaluated = f"{split} not evaluated"
    if epoch["eval_loss"] is not None:
        accuracy = f"{epoch['eval_correct']}/{len(data.eval_labels)} ({epoch['eval_accuracy']:.2f}%)"
        evaluated = f"{split} loss {epoch['eval_loss']:.4f} accuracy {accuracy}"
    rate = f"lr {epoch['learning_rate']:.5f}"
    return f"Epoch {epoch['epoch']:>2}/{epochs}  {rate}  {trained}  {evaluated}  {epoch['seconds']:.1f} s"
