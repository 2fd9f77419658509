"""Batch normalisation as torch has it, but quick for few channels on a CPU.

With channels last, torch's own kernel adds up one pixel's channels at a time, each thread into a row of its own of one
small table. With 4 to 40 channels these rows share cache lines, and two threads are slower than one. Here pixels are
taken several at a time, as the rows of a matrix, and torch's sums go down its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 128  # numbers in a row, at most, unless there are more channels


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, equal but for rounding; quicker in training on several CPU threads with channels last."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if torch.compiler.is_compiling() or not self._quicker(images):
            return super().forward(images)
        output, mean, variance = _Normalize.apply(images, self.weight, self.bias, self.eps)
        count = images.numel() // images.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output

    def _quicker(self, images: Tensor) -> bool:
        channels_last = images.stride(1) == 1 and images.shape[1] > 1
        on_threads = images.device.type == "cpu" and torch.get_num_threads() > 1
        return self.training and self.momentum is not None and channels_last and on_threads


class _Normalize(torch.autograd.Function):
    """Ioffe and Szegedy, "Batch normalization", 2015: arxiv.org/abs/1502.03167, with its gradient."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor, eps: float):
        rows = _rows(images)
        count = images.numel() // images.shape[1]
        mean = _sum(rows, len(weight)) / count
        about = mean.to(images.dtype)  # what is subtracted; in bfloat16 not quite the mean
        off = mean - about
        centred = rows - _repeat(about, rows)
        variance = _sum(centred * centred, len(weight)) / count - off * off
        scale = torch.rsqrt(variance + eps)
        gain = weight * scale
        output = torch.addcmul(_repeat(bias - off * gain, rows), centred, _repeat(gain, rows))
        ctx.save_for_backward(centred, weight, scale, off)
        ctx.mark_non_differentiable(mean, variance)
        return _images(output, images), mean, variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        centred, weight, scale, off = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows = _rows(gradient)
        count = gradient.numel() // gradient.shape[1]
        of_bias = _sum(rows, len(weight))
        of_weight = (_sum(rows * centred, len(weight)) - off * of_bias) * scale
        gain = weight * scale
        slope = -gain * scale * of_weight / count
        constant = -gain * of_bias / count - slope * off
        inner = torch.addcmul(_repeat(constant, rows), rows, _repeat(gain, rows))
        inner.addcmul_(centred, _repeat(slope, rows))
        return _images(inner, gradient), of_weight, of_bias, None


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) with channels last as a matrix without a copy: several pixels' channels in each row."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
    together = 1
    while 2 * together * pixels.shape[1] <= WIDTH and len(pixels) % (2 * together) == 0:
        together *= 2
    return pixels.reshape(-1, together * pixels.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    count, channels, height, width = like.shape
    return rows.reshape(count, height, width, channels).permute(0, 3, 1, 2)


def _sum(rows: Tensor, channels: int) -> Tensor:
    """The sum over all pixels, float32 (channels,)."""
    return rows.sum(0, dtype=torch.float32).view(-1, channels).sum(0)


def _repeat(values: Tensor, rows: Tensor) -> Tensor:
    """One value a channel → one a column, in the rows' dtype."""
    return values.repeat(rows.shape[1] // len(values)).to(rows.dtype)
