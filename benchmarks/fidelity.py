"""What each encoding costs on a real teacher: divergence, gradient, agreement, bytes.

Asks a recipe's teacher about the first view of training images, or takes what it said from a cache
in float32 (then without the encoding `embedding`, which takes the teacher), and compares the stored
answers with the full ones. `--uniform` adds the form of other
systems: K probabilities in float16 and their ids in 16 bits, what is left spread evenly over the
other classes (TinyViT, Wu et al. 2022, arXiv 2207.10666, equation 3). Prints JSON for
`benchmarks/results.py collect`.
"""

import argparse
import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale import experiment
from kdscale.building.fidelity import fidelity
from kdscale.cache.reader import CacheReader
from kdscale.config import CacheSection, load_recipe
from kdscale.data.loader import DeviceImages
from kdscale.encodings import Embedding, Float16, Float32, Int4, Int8, TopK
from kdscale.errors import ConfigError
from kdscale.targets import Codec, DenseTargets, Head, create_codec
from kdscale.teacher.frozen_teacher import TeacherOutput, concatenate

GRID = tuple(CacheSection().temperatures)


def teacher_outputs(
    recipe: Any, cache_root: Path, samples: int
) -> tuple[TeacherOutput, Tensor, Head | None]:
    """What the teacher says of the first view of the first samples, and labels int64 [N].

    Where its last layer is linear, what enters that too, and the layer.
    """
    images = experiment.training_images(recipe, cache_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, None, torch.device("cpu"))
    with suppress(ConfigError):
        pixels = experiment.few_views(recipe, images, teacher.device)
        module, head = teacher.find_head(pixels)
        teacher = replace(teacher, head=head, head_module=module)
    pipeline = experiment.cached_pipeline(recipe, images.num_samples)
    resident = DeviceImages(images, torch.device("cpu"))
    index = torch.arange(min(samples, images.num_samples))
    said, labels = [], []
    for part in index.split(recipe.teacher.batch_size):
        batch = resident.render_views(pipeline, 0, part)
        said.append(teacher.outputs(batch.pixels))
        labels.append(batch.labels)
    return concatenate(said).with_each(Tensor.clone), torch.cat(labels), teacher.head


def cached_answers(path: Path, samples: int) -> tuple[TeacherOutput, Tensor, None]:
    """The same from view 0 of a cache in float32, but for the layer."""
    reader = CacheReader(path)
    if reader.manifest.encoding != "float32":
        raise SystemExit(f"{path} holds {reader.manifest.encoding}, wanted float32")
    logits = torch.from_numpy(reader.read_view(0)["logits"][:samples])
    return TeacherOutput(logits), torch.from_numpy(reader.labels()[:samples]), None


def uniform_tail(logits_BC: Tensor, kept: int) -> DenseTargets:
    """What is read back where the K largest probabilities are kept and the rest is even."""
    probabilities = logits_BC.softmax(1)
    top = probabilities.topk(kept, dim=1)
    values = top.values.half().float()
    # Rounding can leave nothing for the rest: no logarithm of 0.
    left = (1 - values.sum(1, keepdim=True)).clamp_min(1e-7)
    each = (left / (logits_BC.shape[1] - kept)).expand_as(logits_BC)
    return DenseTargets(each.scatter(1, top.indices, values.clamp_min(1e-7)).log())


def measure(said: TeacherOutput, labels: Tensor, codec: Codec) -> dict[str, Any]:
    """One row of the table."""
    logits = said.logits_BC
    began = time.perf_counter()
    arrays = codec.encode(logits, said.embedding_BD)
    encoded = time.perf_counter()
    stored = codec.decode(arrays)
    decoded = time.perf_counter()
    return {
        "bytes_per_target": codec.encoding.bytes_per_target,
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
    parser.add_argument("--uniform", type=int, nargs="+", default=[])
    parser.add_argument("--cache", type=Path, help="take the answers from this cache")
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    if arguments.cache:
        said, labels, head = cached_answers(arguments.cache, arguments.samples)
    else:
        recipe = load_recipe(arguments.recipe, arguments.overrides, arguments.data)
        said, labels, head = teacher_outputs(recipe, arguments.cache_root, arguments.samples)
    logits = said.logits_BC
    classes = logits.shape[1]
    codecs = {kind.name: create_codec(kind(classes)) for kind in (Float32, Float16, Int8, Int4)}
    for top_k in arguments.top_k:
        codecs[f"topk, K = {top_k}"] = create_codec(TopK(classes, top_k, GRID))
    if head is not None:
        embedding = Embedding(classes, head.inputs)
        codecs[f"embedding, D = {head.inputs}"] = create_codec(embedding, head)
    rows = {name: measure(said, labels, one) for name, one in codecs.items()}
    for kept in arguments.uniform:
        report = fidelity(logits, uniform_tail(logits, kept), labels)
        rows[f"K = {kept}, uniform tail"] = {"bytes_per_target": 4 + 4 * kept, **report}
    found = {
        "samples": len(logits),
        "classes": classes,
        "temperatures": list(GRID),
        "encodings": rows,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
