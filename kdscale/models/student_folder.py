"""Write a student as a folder that kdscale, timm and transformers load.

Where timm or transformers defines the model, its own configuration lies beside the weights.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale.atomic_write import create_folder
from kdscale.models.deployable import Deployable
from kdscale.models.headless import NUM_CLASSES
from kdscale.models.student_files import CONFIG, MODEL_OF_FOLDER, PROCESSOR, WEIGHTS, sums_of
from kdscale.models.untrusted import without_initial_weights
from kdscale.models.weights import save_weights

_BILINEAR = 2  # PIL's number
_OF_OTHER_WEIGHTS = frozenset(
    ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load", "tag",
     "label_offset", "label_names", "label_descriptions", "test_input_size", "test_crop_pct",
     "license", "origin_url", "paper_name", "paper_ids", "notes")
)  # fmt: skip
"""Keys of timm's `pretrained_cfg` about the weights that its library would load."""


def write_student_folder(folder: Path, student: Deployable, about: Mapping[str, Any]) -> None:
    """Write a student's weights, and the configuration of the library that defines its model.

    Args:
        folder: the folder, which is created; existing files are replaced.
        student: the model with its preprocessing.
        about: the metadata of the weights: `model`, `options`, `class_names`, `clean`, and others.
    """
    create_folder(folder)
    library = str(about["model"]).partition("/")[0]
    stated = dict(about)
    if library == "timm":
        _write_timm(folder, student, about)
    elif library == "transformers":
        _write_transformers(folder, student, about["clean"])
        stated["model"] = MODEL_OF_FOLDER
    save_weights(folder / WEIGHTS, student.model, metadata={**stated, "files": sums_of(folder)})


def _write_timm(folder: Path, student: Deployable, about: Mapping[str, Any]) -> None:
    """Write timm's config.json by timm itself; the weights that it writes are replaced later."""
    from timm.models import save_for_hf

    model: Any = student.model
    preprocess, channels = student.preprocess, student.preprocess.channels
    given = {key: value for key, value in model.pretrained_cfg.items() if value is not None}
    crop_pct, crop_mode = _crop_of_timm(about["clean"])
    settings: dict[str, Any] = {
        **{key: value for key, value in given.items() if key not in _OF_OTHER_WEIGHTS},
        "input_size": [channels, *_input_size(student, given["input_size"][1:])],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "num_classes": model.num_classes,
    }
    settings.pop("architecture", None)
    options = {**without_initial_weights("timm/", about["options"]), "in_chans": channels}
    options.pop(NUM_CLASSES, None)  # stated beside them
    names = list(student.class_names)
    config = {"pretrained_cfg": settings} | ({"label_names": names} if names else {})
    save_for_hf(
        model, str(folder), model_config=config, model_args=options, safe_serialization=True
    )


def _write_transformers(folder: Path, student: Deployable, clean: Sequence[Any]) -> None:
    model: Any = student.model
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if names := student.class_names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    described = config.to_diff_dict()
    described.pop("_name_or_path", None)  # may be a folder of this machine
    _write_json(folder / CONFIG, described)
    _write_json(folder / PROCESSOR, _processor(student, clean))


def _processor(student: Deployable, clean: Sequence[Any]) -> dict[str, Any]:
    """Return the settings of an image processor: of the shorter side and a crop, or of both."""
    preprocess = student.preprocess
    height, width = _input_size(student, (224, 224))
    size = {"height": height, "width": width}
    shorter, crop = _resize_and_crop(clean)
    cropped = shorter is not None and crop is not None
    return {
        "image_processor_type": "CLIPImageProcessor" if cropped else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shorter} if cropped else size,
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    } | ({"do_center_crop": True, "crop_size": size} if cropped else {})


def _input_size(student: Deployable, otherwise: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the model's input."""
    side = student.preprocess.size
    height, width = (side, side) if side is not None else student.size or tuple(otherwise)
    return int(height), int(width)


def _crop_of_timm(clean: Sequence[Any]) -> tuple[float, str]:
    """Return timm's `crop_pct` and `crop_mode` for the operations of `data.clean`."""
    shorter, crop = _resize_and_crop(clean)
    if shorter is None or crop is None:
        return 1.0, "squash"
    return crop / shorter, "center"


def _resize_and_crop(clean: Sequence[Any]) -> tuple[int | None, int | None]:
    """Return the shorter side and the crop's side, where `data.clean` is a resize and a crop."""
    sizes = [(one.get("name"), one.get("size")) for one in clean if isinstance(one, Mapping)]
    if len(clean) != 2 or [name for name, _ in sizes] != ["resize", "center_crop"]:
        return None, None
    shorter, crop = (
        size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size
        for _, size in sizes
    )
    whole = isinstance(sizes[0][1], int) and isinstance(crop, int)
    return (shorter, crop) if whole else (None, None)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
