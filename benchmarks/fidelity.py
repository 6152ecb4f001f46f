"""What each encoding costs on a real teacher: divergence, gradient, agreement, bytes.

Asks a recipe's teacher about the first view of training images, and compares the stored answers
with the full ones. Prints JSON for `benchmarks/results.py collect`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.config import Cache, load_recipe
from kdscale.data.loader import Images
from kdscale.engine import components
from kdscale.fidelity import fidelity
from kdscale.targets import Encoding, decode, encode

GRID = tuple(Cache().temperatures)


def answers(recipe: Any, cache_root: Path, samples: int) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, C] of the first view of the first samples, and labels int64 [N]."""
    images = components.training_images(recipe, cache_root, labelled=True)
    teacher = components.frozen_teacher(recipe, images, None, torch.device("cpu"))
    pipeline = components.cached_pipeline(recipe, images.num_samples)
    resident = Images(images, torch.device("cpu"))
    index = torch.arange(min(samples, images.num_samples))
    logits, labels = [], []
    for part in index.split(recipe.teacher.batch_size):
        batch = resident.show(pipeline, 0, part)
        logits.append(teacher.logits(batch.pixels))
        labels.append(batch.labels)
    return torch.cat(logits).clone(), torch.cat(labels)


def measure(logits: Tensor, labels: Tensor, encoding: Encoding) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    arrays = encode(logits, encoding)
    encoded = time.perf_counter()
    stored = decode(arrays, encoding)
    decoded = time.perf_counter()
    return {
        "bytes_per_target": encoding.bytes_per_target,
        **fidelity(logits, stored, labels),
        "encoded_per_second": round(len(logits) / (encoded - began)),
        "decoded_per_second": round(len(logits) / (decoded - encoded)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--top-k", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides, arguments.data)
    logits, labels = answers(recipe, arguments.cache_root, arguments.samples)
    classes = logits.shape[1]
    encodings = {name: Encoding(name, classes) for name in ("float32", "float16", "int8", "int4")}
    for top_k in arguments.top_k:
        encodings[f"topk, K = {top_k}"] = Encoding("topk", classes, top_k, GRID)
    found = {
        "samples": len(logits),
        "classes": classes,
        "temperatures": list(GRID),
        "encodings": {name: measure(logits, labels, one) for name, one in encodings.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
