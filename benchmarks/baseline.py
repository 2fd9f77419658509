"""The pipeline that this project started from, as its document describes it: the opponent that ours is timed against.

The same `Net`, but a DataLoader with two workers, PIL transforms image by image, batches of 64, SGD and a step
schedule. What the document leaves open is set to what is fastest for it.
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
from training.augmentation import MEAN, STD
from training.mnist import MnistData

NORMALIZE = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
AUGMENT = [transforms.RandomRotation(15), transforms.RandomAffine(0, translate=(0.1, 0.1))]


class Images(Dataset):
    """Images as `torchvision.datasets.MNIST` hands them out: one by one, as PIL images, through a transform."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


def epochs(data: MnistData, seed: int = 0, count: int = 20, device: str = "cpu") -> Iterator[tuple[float, float]]:
    """Train `count` epochs; yield the seconds of each, without its test, and the accuracy on the held-out images."""
    torch.manual_seed(seed)
    options = {"num_workers": 2, "persistent_workers": True, "pin_memory": device != "cpu"}
    train = Images(data.train_images, data.train_labels, transforms.Compose(AUGMENT + NORMALIZE))
    test = Images(data.eval_images, data.eval_labels, transforms.Compose(NORMALIZE))
    train = DataLoader(train, batch_size=64, shuffle=True, **options)
    test = DataLoader(test, batch_size=1000, **options)
    model = build(Net, seed).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.1)
    for _ in range(count):
        start = time.perf_counter()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        scheduler.step()
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        model.eval()
        with torch.inference_mode():
            correct = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in test)
        yield seconds, 100 * correct / len(data.eval_labels)
