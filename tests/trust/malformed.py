"""Kinds of files that kdscale reads, how each is damaged, and the commands that read it."""

import hashlib
import io
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mutations
import numpy as np
import tomli_w
import torch
from PIL import Image
from safetensors.torch import load_file

CACHED = ("--targets", "cache", "--cache", "root/tiny.zarr")
RESUME = ("train", "r.toml", *CACHED, "--run", "unfinished", "--resume")
TRAIN = ("train", "r.toml", *CACHED, "--run", "new")
EVALUATE = ("evaluate", "student", "--seconds", "0")
REPORT = ("report", "student", "teacher", "unfinished", "--markdown", "-")
VIEWS = ("views", "r.toml", "--data", "data", "--out", "v.png", "--samples", "2")
SWEEP = ("sweep", "s.toml", "--run", "sweep", "--cache", "root/tiny.zarr")


@dataclass(frozen=True)
class Kind:
    """Files of one kind: how one is damaged, and the commands that read it, one of them drawn."""

    parts: tuple[str, ...]
    """What of the material is needed."""
    damage: Callable[[Random, Path], None]
    commands: tuple[tuple[str, ...], ...]


# --------------------------------------------------------------------------- damage, by kind


def _pick(draw, box, *patterns):
    found = sorted(path for one in patterns for path in box.glob(one) if path.is_file())
    return draw.choice(found)


def _recipe(draw, box):
    path = box / "r.toml"
    text, kind = path.read_text(), draw.randrange(4)
    if kind == 0:
        path.write_bytes(mutations.damage_text(draw, text))
    elif kind == 1:
        line = draw.choice([
            "\n[data]\n", f"\nx = {'9' * mutations.LONG}\n", f"\nx = {'[' * mutations.DEEP}\n",
            f"\n{'a.' * 5000}b = 1\n", "\n[student.options]\nhidden = nan\n", "\nname = 1\n",
            f"\nx = {'{a=' * 2000}1{'}' * 2000}\n", "\n[[data]]\n", "\n\x00\n", "\n'''\n",
        ])  # fmt: skip
        path.write_text(text.replace("\n[", f"{line}\n[", 1))
    else:
        table = mutations.damage_value(draw, tomllib.loads(text))
        if kind == 3:
            table = mutations.damage_value(draw, table)
        try:
            path.write_text(tomli_w.dumps(table))
        except (TypeError, ValueError, AttributeError):  # no TOML: null, lone surrogates
            path.write_bytes(mutations.damage_bytes(draw, text.encode()))


def _recipe_of_run(draw, box):
    (box / "student/recipe.toml").replace(box / "r.toml")
    _recipe(draw, box)
    (box / "r.toml").replace(box / "student/recipe.toml")


def _signed(manifest):
    """The group's document, by the specification."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    rest["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"kdscale": rest}}
    return json.dumps(document, indent=1).encode()


def _read_manifest(cache):
    return json.loads((cache / "zarr.json").read_text())["attributes"]["kdscale"]


NUMBERS = ("num_views", "num_samples", "num_classes", "shard_samples", "bytes_per_target",
           "format_version", "top_k", "chunk_samples", "embedding_size")  # fmt: skip


def _manifest(draw, box):
    cache = box / "root/tiny.zarr"
    if draw.random() < 0.15:
        text = (cache / "zarr.json").read_text()
        (cache / "zarr.json").write_bytes(mutations.damage_json(draw, text))
        return
    manifest = _read_manifest(cache)
    if draw.random() < 0.4:
        manifest[draw.choice(NUMBERS)] = draw.choice([-1, 0, 1, 2, 10**9, 10**12, 2**63, 0.5, "3"])
    else:
        manifest = mutations.damage_value(draw, manifest)
    (cache / "zarr.json").write_bytes(_signed(manifest))


def _array_metadata(draw, box):
    """Of an array, with the manifest signed anew, so that nothing but its content is wrong."""
    cache = box / "root/tiny.zarr"
    path = _pick(draw, cache, "*/zarr.json")
    path.write_bytes(mutations.damage_json(draw, path.read_text()))
    manifest = _read_manifest(cache)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["checksums"][str(path.relative_to(cache))] = digest
    (cache / "zarr.json").write_bytes(_signed(manifest))


def _cache_object(draw, box):
    path = _pick(draw, box, "root/tiny.zarr/*/c/**/*")
    path.write_bytes(mutations.damage_bytes(draw, path.read_bytes()))


CLAIM = {"builder": "0123456789abcdef", "host": "h", "pid": 1, "machine": "m", "started": "1"}


def _claims(draw, box):
    """Beside a cache, a run and a sweep."""
    folder = box / draw.choice(["root/tiny.zarr", "unfinished", "new"]) / "claims"
    folder.mkdir(parents=True)
    for _ in range(1 + draw.randrange(4)):
        name = draw.choice([
            "run.0", "manifest.0", "view-00000-shard-00000.0", "run.99999999999999999999",
            "0123456789abcdef.builder", "x.y", "run", ".0", "view-00000-shard-00000.builder",
        ])  # fmt: skip
        content = mutations.damage_json(draw, json.dumps(CLAIM))
        if name.endswith("builder") and draw.random() < 0.5:
            content = b"00000000000000000003"
        (folder / name).write_bytes(content)


def _json_of(*patterns):
    def damage(draw, box):
        path = _pick(draw, box, *patterns)
        path.write_bytes(mutations.damage_json(draw, path.read_text()))

    return damage


def _lines_of(pattern):
    def damage(draw, box):
        path = _pick(draw, box, pattern)
        lines = path.read_text().splitlines()
        place = draw.randrange(len(lines))
        damaged = mutations.damage_json(draw, lines[place])
        text = [line.encode() for line in lines]
        text[place] = damaged
        path.write_bytes(b"\n".join(text) + b"\n")

    return damage


def _safetensors_of(*patterns):
    def damage(draw, box):
        path = _pick(draw, box, *patterns)
        path.write_bytes(mutations.damage_safetensors(draw, path.read_bytes()))

    return damage


def _torch_checkpoint(draw, box):
    """Weights as `torch.save` writes them, of the teacher."""
    buffer = io.BytesIO()
    state = dict(load_file(box / "teacher/weights.safetensors"))
    nest = draw.choice([None, "state_dict", "model"])
    torch.save(state if nest is None else {nest: state, "epoch": 3}, buffer)
    content = mutations.damage_bytes(draw, buffer.getvalue())
    (box / "w.pt").write_bytes(content)


def _parquet(draw, box):
    recipe = tomllib.loads((box / "r.toml").read_text())
    shutil.copytree(recipe["data"]["source"], box / "data")
    path = _pick(draw, box, "data/*")
    path.write_bytes(mutations.damage_bytes(draw, path.read_bytes()))


FORMATS = {"png": "PNG", "jpg": "JPEG", "tiff": "TIFF", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}


def _images(draw, box):
    """A folder of images, one or two of which are damaged."""
    suffix = draw.choice(list(FORMATS))
    noise = np.random.default_rng(draw.randrange(2**32))
    mode = draw.choice([(28, 28), (28, 28, 3)])
    for split in ("train", "test"):
        for name in ("a", "b"):
            (box / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.fromarray(noise.integers(0, 256, mode, dtype=np.uint8))
                image.save(box / "data" / split / name / f"{number}.{suffix}", FORMATS[suffix])
    for _ in range(1 + draw.randrange(2)):
        path = _pick(draw, box, "data/*/*/*")
        path.write_bytes(mutations.damage_bytes(draw, path.read_bytes()))


def _image_store(draw, box):
    path = _pick(draw, box, "root/images/*/*", "root/predictions/*")
    if path.suffix == ".json":
        path.write_bytes(mutations.damage_json(draw, path.read_text()))
    else:
        path.write_bytes(mutations.damage_bytes(draw, path.read_bytes()))


CHECK = ("cache", "plan", "r.toml", "--seconds", "0.1")
KINDS = {
    "recipe": Kind(("r.toml",), _recipe, (("views", "r.toml", "--out", "v.png"), CHECK)),
    "recipe of a run": Kind(("student", "unfinished", "teacher", "root", "r.toml"),
                            _recipe_of_run, (EVALUATE, REPORT)),
    "cache manifest": Kind(("root", "r.toml"), _manifest, (
        ("cache", "info", "root/tiny.zarr"), ("cache", "verify", "root/tiny.zarr"),
        ("cache", "list"), TRAIN, ("cache", "show", "root/tiny.zarr", "--out", "v.png"))),
    "array metadata": Kind(("root", "r.toml"), _array_metadata,
                           (("cache", "verify", "root/tiny.zarr"), TRAIN)),
    "cache object": Kind(("root", "r.toml"), _cache_object,
                         (("cache", "verify", "root/tiny.zarr"), TRAIN)),
    "claims": Kind(("root", "r.toml", "unfinished"), _claims, (
        RESUME, TRAIN, ("cache", "verify", "root/tiny.zarr"),
        ("cache", "remove", "root/tiny.zarr", "--yes"))),
    "run files": Kind(("student", "teacher", "unfinished", "root", "r.toml"), _json_of(
        "student/*.json"), (EVALUATE, REPORT, (*EVALUATE, "--weights", "best"),
        ("train", "r.toml", *CACHED, "--run", "student", "--resume-if-begun"))),
    "metrics": Kind(("student", "teacher", "unfinished", "root"),
                    _lines_of("student/metrics.jsonl"), (REPORT,)),
    "unfinished run": Kind(("unfinished", "root", "r.toml"), _json_of(
        "unfinished/*.json", "unfinished/checkpoints/*/*.json"), (RESUME,)),
    "checkpoint tensors": Kind(("unfinished", "root", "r.toml"), _safetensors_of(
        "unfinished/checkpoints/*/*.safetensors"), (RESUME,)),
    "weights": Kind(("student", "teacher", "root", "r.toml"), _safetensors_of(
        "student/weights.safetensors"), (EVALUATE, ("export", "student", "--format", "safetensors"),
        ("views", "r.toml", "--out", "v.png", "--set",
         "student.weights=student/weights.safetensors"))),
    "torch checkpoint": Kind(("teacher", "r.toml"), _torch_checkpoint,
        ((*CHECK, "--set", "teacher.weights=w.pt"),)),
    "parquet": Kind(("r.toml",), _parquet, (VIEWS,)),
    "images": Kind(("r.toml",), _images, (VIEWS,)),
    "image store": Kind(("student", "teacher", "root", "r.toml"), _image_store, (EVALUATE, TRAIN)),
    "sweep": Kind(("root", "s.toml", "sweep"), _json_of(
        "sweep/*.json", "sweep/trials/*/*.json"), (
        SWEEP, ("sweep", "status", "sweep"), ("sweep", "best", "sweep"),
        ("report", "sweep", "--markdown", "-"), ("evaluate", "sweep", "--seconds", "0"))),
}  # fmt: skip
