"""Models that tests name as `tiny_models:NAME`: small, and some of them difficult."""

import contextlib
import os
import time
from pathlib import Path

import torch
from torch import nn

SIDE = 8


def linear(num_classes, in_channels, side=SIDE):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * side * side, num_classes))


def mlp(num_classes, in_channels, hidden=16, dropout=0.0):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * SIDE * SIDE, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )


class _Sleep(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, values):
        time.sleep(self.seconds)
        return values


def slow_mlp(num_classes, in_channels, seconds=0.01, dropout=0.3):
    return nn.Sequential(_Sleep(seconds), *mlp(num_classes, in_channels, dropout=dropout))


class _Halt(nn.Module):
    def __init__(self, halt, batches):
        super().__init__()
        self.halt, self.batches = Path(halt), batches

    def forward(self, values):
        if self.training and len(values) > 2:  # 2 are a look at the model
            self.batches -= 1
            while self.batches < 0 and self.halt.exists():
                time.sleep(0.01)
        return values


def halting_mlp(num_classes, in_channels, halt, batches=5):
    """Stands still in training after some batches, for as long as a file is there."""
    return nn.Sequential(_Halt(halt, batches), *mlp(num_classes, in_channels, dropout=0.3))


def batch_norm(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (SIDE - 2) ** 2, num_classes),
    )


def batch_norm_and_dropout(num_classes, in_channels, dropout=0.3):
    *layers, last = batch_norm(num_classes, in_channels)
    return nn.Sequential(*layers, nn.Dropout(dropout), last)


def batch_norm_of_vectors(num_classes, in_channels):
    return nn.Sequential(linear(num_classes, in_channels), nn.BatchNorm1d(num_classes))


class _Unusual(nn.Module):
    """A linear model that does something else too, before it answers."""

    def __init__(self, num_classes, in_channels, before):
        super().__init__()
        self.body = linear(num_classes, in_channels)
        self.before = before

    def forward(self, pixels):
        self.before(pixels)
        return self.body(pixels)


def slow(num_classes, in_channels, seconds=0.01):
    return _Unusual(num_classes, in_channels, lambda _: time.sleep(seconds))


def _halt(cache, pixels):
    """Answer no batch of a build once the cache has as many shards as `NAME.halt` says."""
    halt = Path(cache).with_suffix(".halt")
    with contextlib.suppress(FileNotFoundError):  # removed: go on
        while len(pixels) > 6:  # up to 6 are a look at the model
            if len(list(Path(cache).glob("commits/c/*/*/0"))) < int(halt.read_text() or 0):
                break
            time.sleep(0.01)


def halting(num_classes, in_channels, cache):
    return _Unusual(num_classes, in_channels, lambda pixels: _halt(cache, pixels))


def counted(num_classes, in_channels, log="batches.txt", seconds=0.0, cache=""):
    """Notes the process and the size of each batch that it is asked about."""

    def before(pixels):
        _halt(cache or log, pixels)
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {len(pixels)}\n")
        time.sleep(seconds)

    return _Unusual(num_classes, in_channels, before)


def hungry(num_classes, in_channels, largest=8):
    """Runs out of memory beyond `largest` images."""

    def before(pixels):
        if len(pixels) > largest:
            raise torch.OutOfMemoryError(f"no memory for {len(pixels)} images")

    return _Unusual(num_classes, in_channels, before)


def hungry_cpu(num_classes, in_channels, largest=8):
    """The same as a CPU says it."""

    def before(pixels):
        if len(pixels) > largest:
            torch.empty(1 << 60, dtype=torch.uint8)

    return _Unusual(num_classes, in_channels, before)


def diverging(num_classes, in_channels):
    """Gives NaN in training."""

    class Diverging(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear(num_classes, in_channels)

        def forward(self, pixels):
            logits = self.body(pixels)
            return logits * float("nan") if self.training else logits

    return Diverging()


def undefined_when_dark(num_classes, in_channels):
    """Gives NaN in evaluation where an image's first row is dark, about a third of the time."""

    class Undefined(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear(num_classes, in_channels)

        def forward(self, pixels):
            logits = self.body(pixels)
            is_dark = pixels[:, :, 0].flatten(1).mean(1) < (-1e9 if self.training else 0.3)
            return logits.where(~is_dark[:, None], float("nan"))

    return Undefined()


class Convolutional(nn.Module):
    """A stem that gives maps, a body that works on them in place, and a linear head."""

    def __init__(self, num_classes, in_channels, width=6, softmax=False):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, stride=2)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1))
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.top = nn.Linear(width, num_classes)
        self.last = nn.LogSoftmax(1) if softmax else nn.Identity()

    def forward(self, pixels):
        return self.last(self.top(self.neck(self.body(self.stem(pixels)))))


def convolutional(num_classes, in_channels, softmax=False):
    return Convolutional(num_classes, in_channels, softmax=softmax)


class Viewing(nn.Module):
    """Takes a map's values to lie in memory channel by channel."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3)
        self.top = nn.Linear(4 * (SIDE - 2) ** 2, num_classes)

    def forward(self, pixels):
        maps = self.stem(pixels)
        return self.top(maps.view(len(maps), -1))


def viewing(num_classes, in_channels):
    return Viewing(num_classes, in_channels)


class _Dropping(nn.Module):
    """Dropout that is on in evaluation, too."""

    def forward(self, values):
        return nn.functional.dropout(values, 0.5)


def dropping(num_classes, in_channels):
    return nn.Sequential(linear(num_classes, in_channels), _Dropping())


class _Unused(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = linear(num_classes, in_channels)
        self.unused = linear(num_classes, in_channels)

    def forward(self, pixels):
        return self.body(pixels)


def unused(num_classes, in_channels):
    return _Unused(num_classes, in_channels)


def pair_in_training(num_classes, in_channels):
    """Gives its logits twice in training, as models with auxiliary heads do."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear(num_classes, in_channels)

        def forward(self, pixels):
            logits = self.body(pixels)
            return (logits, logits) if self.training else logits

    return Pair()


def constant_class(num_classes, in_channels):
    """Gives all images the same class, whatever its weights."""

    class ConstantClass(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear(num_classes, in_channels)

        def forward(self, pixels):
            bias = torch.zeros(num_classes, device=pixels.device)
            bias[0] = 1e3
            return self.body(pixels) + bias

    return ConstantClass()


class Counting(nn.Module):
    """Learns the mean of its inputs in a tensor that a state dict may leave out."""

    def __init__(self, num_classes, in_channels, kind="buffer"):
        super().__init__()
        self.body, self.kind = linear(num_classes, in_channels), kind
        if kind == "attribute":
            self.mean = torch.zeros(())
        else:
            self.register_buffer("mean", torch.zeros(()), persistent=kind == "saved")
        self.register_buffer("cache", torch.zeros(()), persistent=False)

    def forward(self, pixels):
        self.cache = torch.ones(()) * pixels.shape[-1]  # the same in each pass
        if self.training and self.kind != "constant":
            self.mean = 0.9 * self.mean + 0.1 * pixels.detach().mean()
        return self.body(pixels - self.mean)


def counting(num_classes, in_channels, kind="buffer"):
    return Counting(num_classes, in_channels, kind)


class Versioned(nn.Module):
    """Loads no state dict that does not say its version, as torchvision's mnasnet does not."""

    _version = 2

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = linear(num_classes, in_channels)

    def forward(self, pixels):
        return self.body(pixels)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def versioned(num_classes, in_channels):
    return Versioned(num_classes, in_channels)


def embedding(in_channels, width=6, maps=False):
    """Gives an embedding [B, width], or the map that it is the mean of: no classifier."""
    layers = [nn.Conv2d(in_channels, width, 3, padding=1, stride=2), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1)]
    pooled = [] if maps else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled)


def pair_of_embeddings(in_channels, pretrained):
    """Gives its embedding twice."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = embedding(in_channels)

        def forward(self, pixels):
            return self.body(pixels), self.body(pixels)

    return Pair()
