"""Data sets and models that users of other tools stumbled over: small, of noise alone.

Each function writes one into a folder, beside a recipe r.toml and the models of `tiny.py`.
"""

import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from PIL import Image

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F

class Tiny(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(128, num_classes)

    def features(self, pixels):
        return F.adaptive_avg_pool2d(torch.relu(self.conv(pixels)), 4).flatten(1)

    def forward(self, pixels):
        return self.head(self.features(pixels))

class Dropping(Tiny):
    def forward(self, pixels):
        return self.head(F.dropout(self.features(pixels), 0.5))  # in evaluation, too

class Batchwise(Tiny):
    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.norm = nn.BatchNorm1d(128, track_running_stats=False)

    def forward(self, pixels):
        return self.head(self.norm(self.features(pixels)))

class Probabilities(Tiny):
    def forward(self, pixels):
        return super().forward(pixels).softmax(1)

class Standardised(Tiny):
    def forward(self, pixels):  # NaN for an image of one colour
        mean, std = (f((1, 2, 3), keepdim=True) for f in (pixels.mean, pixels.std))
        return super().forward((pixels - mean) / std)

class Unused(Tiny):
    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.auxiliary = nn.Linear(128, num_classes)  # no loss reaches it

def make(num_classes, in_channels) -> nn.Module:
    return Tiny(num_classes, in_channels)

def dropping(num_classes, in_channels) -> nn.Module:
    return Dropping(num_classes, in_channels)

def batchwise(num_classes, in_channels) -> nn.Module:
    return Batchwise(num_classes, in_channels)

def probabilities(num_classes, in_channels) -> nn.Module:
    return Probabilities(num_classes, in_channels)

def standardised(num_classes, in_channels) -> nn.Module:
    return Standardised(num_classes, in_channels)

def unused(num_classes, in_channels) -> nn.Module:
    return Unused(num_classes, in_channels)
"""

SPLITS = ("train", "test")
_random = np.random.default_rng(12)


def noise(size=32):
    """An image of noise."""
    return Image.fromarray(_random.integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_recipe(folder, *, teacher="tiny:make", student="tiny:make", channels=3, **changes):
    """r.toml and tiny.py; `changes` are sections, or `name`."""
    (folder / "tiny.py").write_text(MODELS)
    shown = {"mean": [0.5] * channels, "std": [0.25] * channels}
    train = {"epochs": 1, "global_batch_size": 8}
    recipe = {
        "name": "case",
        "data": {"source": "data"},
        "views": {"operations": ["random_horizontal_flip"], "count": 2},
        "teacher": {"model": teacher, "input": shown, "train": train},
        "student": {"model": student, "train": train},
    }
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) else value
    (folder / "r.toml").write_text(tomli_w.dumps(recipe))


def image_folders(
    folder, classes=("a", "b"), *, count=8, size=32, splits=SPLITS, suffix="png", convert=None
):
    """data/SPLIT/CLASS/NUMBER.SUFFIX."""
    for split in splits:
        for name in classes:
            place = folder / "data" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = noise(size)
                (convert(image) if convert else image).save(place / f"{number}.{suffix}")


def _encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parquet(folder, labels, kind, *, name="{split}.parquet", names=None):
    """data/NAME for each split; `names` are those of the classes, in the file's metadata."""
    (folder / "data").mkdir()
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in SPLITS:
        cells = [{"bytes": _encoded(noise()), "path": None} for _ in labels]
        columns = {"image": pa.array(cells, cell), "label": pa.array(labels, kind)}
        table = pa.table(columns)
        if names is not None:
            features = {
                "image": {"_type": "Image"},
                "label": {"_type": "ClassLabel", "names": names},
            }
            told = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(told)
        pq.write_table(table, folder / "data" / name.format(split=split))


def unwritable_exif():
    """EXIF tags: rotated by 90 degrees, and a negative resolution, which Pillow cannot write."""
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 2 * 12 + 4)
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    return header + orientation + resolution + struct.pack("<Iii", 0, -5, 1)
