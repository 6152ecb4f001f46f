"""What caches of ImageNet-1k and -21k take on 8 nodes of 8 GPUs: tables of docs/scaling.md.

    python benchmarks/scaling.py render        # writes the tables into docs/scaling.md
    python benchmarks/scaling.py collectives   # counts the collectives of a training step

The tables are arithmetic, by the code that `kdscale cache plan --nodes` uses.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from kdscale.building.cluster_estimate import Cluster, StudentSize, estimate
from kdscale.cache.manifest import Manifest
from kdscale.encodings import create_encoding
from kdscale.formatting import bytes_text, duration_text
from kdscale.report.table import Table

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
CLUSTER = Cluster(nodes=8, gpus_per_node=8)
IMAGES_PER_SECOND = 1000.0
DATA_SETS = {
    "ImageNet-1k": (1_281_167, 1000, 300),
    "ImageNet-21k": (14_197_122, 21_841, 90),
}
"""Images, classes, and views: one for each epoch of a long training."""
TEMPERATURES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
ENCODINGS = {
    "float16": {"name": "float16"},
    "int8": {"name": "int8"},
    "int4": {"name": "int4"},
    "embedding of 2048": {"name": "embedding", "embedding_size": 2048},
    "topk, 100 classes": {"name": "topk", "top_k": 100, "temperatures": TEMPERATURES},
    "topk, 20 classes": {"name": "topk", "top_k": 20, "temperatures": TEMPERATURES},
}
STUDENTS = {"resnet18": 11_689_512, "resnet50": 25_557_032}
"""Parameters of torchvision's models of 1000 classes."""
MEMORY = 4 << 30  # `cache.targets_memory` where a recipe does not set it


def manifest_of(data_set: str, encoding: str) -> Manifest:
    """Return the manifest of a cache of a data set, in objects of 4,096 samples."""
    num_samples, num_classes, num_views = DATA_SETS[data_set]
    stored = create_encoding(num_classes=num_classes, **ENCODINGS[encoding])
    return Manifest(
        dataset={"keys": "encoded", "classes": []}, views={}, teacher={}, encoding=stored.name,
        num_views=num_views, num_samples=num_samples, num_classes=num_classes,
        shard_samples=4096, bytes_per_target=stored.bytes_per_target, **stored.fields(),
    )  # fmt: skip


def figures(data_set: str, encoding: str, student: str = "resnet18") -> dict[str, float]:
    """Return the figures of a cache on the cluster."""
    size = StudentSize(4 * STUDENTS[student], buffer_types=2)
    return estimate(
        manifest_of(data_set, encoding), CLUSTER, size,
        teacher_images_per_second=IMAGES_PER_SECOND, targets_memory_bytes=MEMORY,
    )  # fmt: skip


def tables() -> dict[str, str]:
    """Return the tables of the page as Markdown, by name."""
    found = {(one, name): figures(one, name) for one in DATA_SETS for name in ENCODINGS}
    size, reading, building = [], [], []
    for (data_set, name), row in found.items():
        manifest = manifest_of(data_set, name)
        first = [data_set, name]
        size.append(
            [*first, f"{manifest.bytes_per_sample:,}", bytes_text(row["epoch_bytes"]),
             str(manifest.num_views), bytes_text(row["bytes"]), f"{row['files']:,}",
             f"{row['objects']:,}"]
        )  # fmt: skip
        reading.append(
            [*first, bytes_text(row["node_read_bytes"]), bytes_text(row["node_fetch_bytes"]),
             f"{row['node_requests']:,}", bytes_text(row["process_memory_bytes"]),
             str(row["windows"])]
        )  # fmt: skip
        building.append(
            [*first, f"{row['shards_per_builder']:,}", f"{row['build_requests']:,}",
             bytes_text(row["bytes"] / row["build_seconds"])]
        )  # fmt: skip
    time = [
        [data_set, f"{num_samples * views / 1e6:,.0f} million", duration_text(row["build_seconds"])]
        for data_set, (num_samples, _, views) in DATA_SETS.items()
        for row in [found[data_set, "float16"]]
    ]
    collectives = [
        [name, bytes_text(row["gradient_bytes_per_step"]), str(row["collectives_per_step"])]
        for name in STUDENTS
        for row in [figures("ImageNet-1k", "float16", name)]
    ]
    of = ["data set", "encoding"]
    return {
        "size": Table(
            [*of, "bytes a target", "one view", "views", "cache", "files in a folder",
             "objects in a store"], size).markdown(),
        "time": Table(["data set", "teacher passes", "64 GPUs"], time).markdown(),
        "building": Table(
            [*of, "shards a builder", "requests of all", "written a second"], building).markdown(),
        "reading": Table(
            [*of, "read by a node", "fetched by a node", "requests of a node",
             "memory a process", "windows"], reading).markdown(),
        "collectives": Table(["student", "gradients a step", "collectives a step"],
                             collectives).markdown(),
    }  # fmt: skip


def rendered(text: str) -> str:
    """Return a page with its tables as the code computes them."""
    for name, table in tables().items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{table.strip()}\n{end}{after}"
    return text


def collectives() -> dict[str, dict[str, int]]:
    """Count the collectives of a step of DistributedDataParallel, as `kdscale train` uses it."""
    import torch
    import torchvision
    from torch.nn.parallel import DistributedDataParallel
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", address, rank=0, world_size=1)
        found = {}
        for name, number in STUDENTS.items():
            model = getattr(torchvision.models, name)()
            assert sum(one.numel() for one in model.parameters()) == number
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
            for _ in range(2):  # buckets are arranged anew after the first step
                with profile(activities=[ProfilerActivity.CPU]) as profiled:
                    wrapped(torch.rand(2, 3, 64, 64)).sum().backward()
            names = [event.name for event in profiled.events() if event.name.startswith("c10d::")]
            found[name] = dict(Counter(names))
        torch.distributed.destroy_process_group()
    return found


def main() -> None:
    """Render the tables, or print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["render", "collectives"])
    if parser.parse_args().what == "render":
        PAGE.write_text(rendered(PAGE.read_text()))
    else:
        print(json.dumps(collectives(), indent=1))


if __name__ == "__main__":
    main()
