"""The networks of the workloads in PyTorch, started as `bound.py` starts them. For the workers on PyTorch."""

import os
from collections.abc import Iterable

import torch
from common import Data
from torch import nn

# Which is faster depends on the work and on what else runs: the workers try both.
THREADS = tuple(dict.fromkeys((1, os.cpu_count() or 1)))


def _start(network: nn.Sequential) -> nn.Sequential:
    """Normal weights of variance 1 / inputs, no biases."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)
    return network


def mlp() -> nn.Sequential:
    """784-64-10 with relu."""
    return _start(nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)))


def cnn() -> nn.Sequential:
    """Convolutions 3 x 3 x 16 and 3 x 3 x 32, each pooled, and a dense layer, on flat images."""
    block = lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    last = (nn.Flatten(), nn.Linear(1568, 10))
    return _start(nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *block(1, 16), *block(16, 32), *last))


def network(workload: str) -> nn.Sequential:
    """The network of W1, W2 or W3; the CNN with channels last, about a quarter faster on one thread of a CPU."""
    torch.manual_seed(0)
    return cnn().to(memory_format=torch.channels_last) if workload == "w2" else mlp()


def tensors(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels to train on."""
    return torch.from_numpy(data.x), torch.from_numpy(data.y).long()


@torch.no_grad()
def accuracy(models: Iterable[nn.Module], data: Data) -> float:
    """Mean accuracy of the models on the test set, in blocks that keep the peak of memory to the training."""
    x, y = torch.from_numpy(data.test_x).split(500), torch.from_numpy(data.test_y).split(500)
    hits = [sum((model(a).argmax(1) == b).sum().item() for a, b in zip(x, y, strict=True)) for model in models]
    return sum(hits) / len(hits) / len(data.test_y)
