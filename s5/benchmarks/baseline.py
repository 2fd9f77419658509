"""The pipeline that this project started from, as the original document describes it: the baseline of the timings.

The same `Net`, but with a DataLoader of two workers, PIL transforms image by image, batches of 64, SGD and a step
schedule. What the document leaves open is set to what is fastest for this pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from helpers import Net, build
from s5.training.augmentation import MEAN, STD
from s5.training.mnist import MnistData

NORMALIZE = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
AUGMENT = [transforms.RandomRotation(15), transforms.RandomAffine(0, translate=(0.1, 0.1))]


class Images(Dataset):
    """uint8 images (N, 28, 28) as `torchvision.datasets.MNIST` returns them: one PIL image at a time, transformed."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


def train(data: MnistData, seed: int = 0, epochs: int = 20) -> Iterator[tuple[float, float]]:
    """Train a new `Net` on the CPU; yield each epoch's seconds, without its evaluation, and its accuracy in percent."""
    torch.manual_seed(seed)
    options = {"num_workers": 2, "persistent_workers": True}
    train_set = Images(data.train_images, data.train_labels, transforms.Compose(AUGMENT + NORMALIZE))
    eval_set = Images(data.eval_images, data.eval_labels, transforms.Compose(NORMALIZE))
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, **options)
    eval_loader = DataLoader(eval_set, batch_size=1000, **options)
    model = build(Net, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.1)
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        seconds = time.perf_counter() - start
        model.eval()
        with torch.inference_mode():
            correct = sum((model(images).argmax(1) == labels).sum().item() for images, labels in eval_loader)
        yield seconds, 100 * correct / len(data.eval_labels)
