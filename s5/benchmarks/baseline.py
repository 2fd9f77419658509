"""The pipeline that this project started from, as the original document describes it: the baseline of the timings.

The same `Net`, but with a DataLoader of two workers, PIL transforms image by image, batches of 64, SGD and a step
schedule. What the document leaves open is set to what is fastest for this pipeline.
"""

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

TRANSFORM = transforms.Compose(
    [
        transforms.RandomRotation(15),
        transforms.RandomAffine(0, translate=(0.1, 0.1)),
        transforms.ToTensor(),
        transforms.Normalize((MEAN,), (STD,)),
    ]
)


class Images(Dataset):
    """uint8 images (N, 28, 28) as `torchvision.datasets.MNIST` returns them: one PIL image at a time, transformed."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return TRANSFORM(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


def train(data: MnistData, epochs: int) -> Iterator[float]:
    """Train a new `Net` on the CPU; yield the seconds of each epoch, without an evaluation."""
    train_set = Images(data.train_images, data.train_labels)
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, num_workers=2, persistent_workers=True)
    model = build(Net, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.1)
    for _ in range(epochs):
        start = time.perf_counter()
        for images, labels in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        yield time.perf_counter() - start
