"""What is seen of a training while it runs: the history, a bar of the batches, and a line of text per epoch."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

from torch import Tensor
from tqdm import tqdm

from s5.training.checks import check_finite
from s5.training.mnist import MnistData, split_title

BATCHES_UNREAD = 50  # between two looks at the loss: reading a number makes a GPU wait


class Epoch(TypedDict):
    """One entry of the history that `helpers.fit` returns. Without an evaluation its three values are None."""

    epoch: int  # from 1
    learning_rate: float  # after the last batch
    train_loss: float  # mean per image, while the weights changed
    train_accuracy: float  # in percent, likewise
    eval_loss: float | None  # mean per image of the test or validation images
    eval_accuracy: float | None  # in percent
    eval_correct: int | None  # images
    seconds: float


def watch(batches: Sequence[Tensor], loss_sum: Tensor, correct: Tensor, shown: bool) -> Iterator[Tensor]:
    """Yield the batches of an epoch; if `shown`, with a bar that vanishes at the end.

    There is no bar in a log file, nor if TQDM_DISABLE is set.

    `loss_sum` and `correct` are sums over the images so far. Raises DivergenceError if the loss is not finite.
    """
    seen, is_seen = 0, sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(batches, leave=False, disable=not (shown and is_seen) or "TQDM_DISABLE" in os.environ)
    for number, batch in enumerate(bar):
        yield batch
        seen += len(batch)
        if number % BATCHES_UNREAD == 0:
            check_finite(loss_sum)
            bar.set_description(f"Train Loss={loss_sum / seen:.4f} Accuracy={100 * correct / seen:.2f}")
    check_finite(loss_sum)


def report(progress: bool | Callable[[list[Epoch]], None], history: list[Epoch], epochs: int, data: MnistData) -> None:
    """Print the last epoch in a line if `progress` is True; if it is a function, call it with the history."""
    if callable(progress):
        progress(history)
    if progress is not True:
        return
    epoch, split = history[-1], split_title(data.source, data.split)
    trained = f"train loss {epoch['train_loss']:.4f} accuracy {epoch['train_accuracy']:.2f}%"
    evaluated = f"{split} not evaluated"
    if epoch["eval_loss"] is not None:
        accuracy = f"{epoch['eval_correct']}/{len(data.eval_labels)} ({epoch['eval_accuracy']:.2f}%)"
        evaluated = f"{split} loss {epoch['eval_loss']:.4f} accuracy {accuracy}"
    rate = f"lr {epoch['learning_rate']:.5f}"
    print(f"Epoch {epoch['epoch']:>2}/{epochs}  {rate}  {trained}  {evaluated}  {epoch['seconds']:.1f} s", flush=True)
