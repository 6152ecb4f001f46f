"""Files that others can run: safetensors with kdscale, ONNX anywhere, pt2 with PyTorch alone."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.errors import ExportError, KdscaleError
from kdscale.models.deployable import Deployable, load_student
from kdscale.models.weights import read_metadata, save_weights

About = Mapping[str, Any]
"""JSON-ready values that go into the file: the model, its classes, what it takes and gives."""
Forward = Callable[[Tensor], Tensor]
"""Function that returns the logits of uint8 pixels."""

INSTALL_EXPORT = 'pip install "kdscale[export]"'
_ABOUT_FILE = "kdscale.json"  # inside a pt2
_LARGEST_ONNX = 2_000_000_000  # protobuf holds no more than 2 GiB


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file."""

    write: Callable[[Deployable, Tensor, About, Path], None]
    """Of a model, two images [2, C, H, W] of any content, its description, and the file."""
    read: Callable[[Path], Forward]
    """Back from the file alone, as a user would."""
    describe: Callable[[Path], dict[str, Any]]
    """The description in a file: what was given to `write` as `About`."""
    example: str
    """Three lines of Python that use the file; `{file}` is its name, as Python writes it."""


def _write_safetensors(program: Deployable, example: Tensor, about: About, path: Path) -> None:
    save_weights(path, program.model, metadata=about)


def _read_safetensors(path: Path) -> Forward:
    return load_student(path, trust_code=True)  # of a model that has just been created


def _describe_safetensors(path: Path) -> dict[str, Any]:
    return dict(read_metadata(path))


def _write_onnx(program: Deployable, example: Tensor, about: About, path: Path) -> None:
    _require_onnx()
    size = sum(one.numel() * one.element_size() for one in program.state_dict().values())
    if size > _LARGEST_ONNX:
        raise ExportError(
            f"the model has {size / 1e9:.1f} GB of weights, one ONNX file holds 2: take "
            "--format pt2"
        )
    with _quiet():
        made = torch.onnx.export(
            program,
            (example,),
            dynamo=True,
            dynamic_shapes={"pixels": _free_axes(program, str)},
            input_names=["pixels"],
            output_names=["embedding" if "embedding" in about else "logits"],
            verbose=False,
        )
        assert made is not None, "without a file, torch.onnx.export returns the program"
        made.model.metadata_props.update({key: _text(value) for key, value in about.items()})
        made.save(path, external_data=False)


def _read_onnx(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(pixels: Tensor) -> Tensor:
        (output,) = session.run(None, {"pixels": pixels.numpy()})
        return torch.from_numpy(output)

    return answer


def _describe_onnx(path: Path) -> dict[str, Any]:
    import onnxruntime

    with explained("onnx", "read from"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    return {key: _value(text) for key, text in stated.items()}


def _require_onnx() -> None:
    try:
        with _quiet():
            import onnxruntime
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"--format onnx needs onnxscript and onnxruntime ({error}): {INSTALL_EXPORT}"
        ) from error
    onnxruntime.set_default_logger_severity(3)  # errors


def _write_pt2(program: Deployable, example: Tensor, about: About, path: Path) -> None:
    free = _free_axes(program, partial(torch.export.Dim, min=1))
    with _quiet():
        exported = torch.export.export(program, (example,), dynamic_shapes={"pixels": free})
        extra = {_ABOUT_FILE: json.dumps(about, ensure_ascii=False)}
        # By way of memory: torch's own writer ends the process where the disk is full.
        whole = io.BytesIO()
        torch.export.save(exported, whole, extra_files=extra)
    path.write_bytes(whole.getbuffer())


def _read_pt2(path: Path) -> Forward:
    with _quiet():
        return torch.export.load(path).module()


def _describe_pt2(path: Path) -> dict[str, Any]:
    extra = {_ABOUT_FILE: ""}
    with explained("pt2", "read from"), _quiet():
        torch.export.load(path, extra_files=extra)
        return dict(json.loads(extra[_ABOUT_FILE]))


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        _write_safetensors,
        _read_safetensors,
        _describe_safetensors,
        "from kdscale import load_student\n"
        "student = load_student({file}{trust})\n"
        "logits = student(pixels)  # torch.uint8",
    ),
    "onnx": Format(
        _write_onnx,
        _read_onnx,
        _describe_onnx,
        "import onnxruntime\n"
        "session = onnxruntime.InferenceSession({file})\n"
        '(logits,) = session.run(None, {{"pixels": pixels}})  # numpy.uint8',
    ),
    "pt2": Format(
        _write_pt2,
        _read_pt2,
        _describe_pt2,
        "import torch\n"
        "student = torch.export.load({file}).module()\n"
        "logits = student(pixels)  # torch.uint8",
    ),
}


def _free_axes(program: Deployable, name: Callable[[str], Any]) -> dict[int, Any]:
    """Return the axes of pixels [B, C, H, W] that a file leaves free, each as `name` gives it."""
    axes = {0: "batch"} if program.clean is None else {0: "batch", 2: "height", 3: "width"}
    return {axis: name(text) for axis, text in axes.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:
    """Return what `_text` made a text of."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters: their messages are nothing that a user could act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def explained(name: str, what: str = "exported to") -> Iterator[None]:
    """Whatever an exporter or a runtime makes of a model that it cannot follow.

    Raises:
        ExportError: naming the reason and what to do; kdscale's own errors as they are.
    """
    try:
        yield
    except (KdscaleError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else type(error).__name__
        raise ExportError(
            f"the model cannot be {what} {name} ({reason[:300]}): take another --format; "
            "safetensors holds every model"
        ) from error
