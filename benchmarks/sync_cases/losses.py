"""Every loss on a batch of 128 samples of 100 classes, in each precision of the student."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdscale.losses.features import HintRegressor
from kdscale.losses.objective import FEATURE_LOSSES, SOFT_LOSSES, FeatureTerm, Objective
from kdscale.targets import DenseTargets, Mix, TopKTargets
from sync_cases.counting import CUDA, Case

_BATCH, _CLASSES, _TOP_K, _GRID = 128, 100, 10, (1.0, 2.0, 4.0)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAPS = ((8, 8, 8), (16, 4, 4))
"""Shapes of the student's and the teacher's feature maps."""


def cases() -> Iterator[Case]:
    """Losses between logits from all classes and from the largest; features; labels."""
    for precision in _DTYPES:
        for kind, loss in SOFT_LOSSES.items():
            yield _case(kind, precision, {"kind": kind})
            if loss.of_largest is not None:
                yield _case(f"{kind}, top k", precision, {"kind": kind}, top_k=True)
                settings = {"kind": kind, "temperature": 3.0}
                yield _case(f"{kind}, top k, off the grid", precision, settings, top_k=True)
        yield _case("kd, standardised", precision, {"kind": "kd", "standardize": True})
        yield _case("kd, mixed images", precision, {"kind": "kd"}, mixed=True)
        yield _case("labels, smoothed", precision, {"label_smoothing": 0.1}, soft_weight=0.0)
        for kind in FEATURE_LOSSES:
            yield _case(f"features, {kind}", precision, {"kind": "kd"}, feature=kind)


def _case(name: str, precision: str, settings: dict[str, Any], **more: Any) -> Case:
    prepare = partial(_loss, _DTYPES[precision], settings, **more)
    return Case(f"loss: {name}, {precision}", prepare)


def _loss(
    dtype: torch.dtype,
    settings: dict[str, Any],
    *,
    top_k: bool = False,
    mixed: bool = False,
    soft_weight: float = 0.5,
    feature: str | None = None,
) -> Callable[[], object]:
    student_BC, labels_B = _values(_BATCH, _CLASSES, dtype=dtype), _labels()
    maps, teacher_maps = (_values(_BATCH, *shape, dtype=dtype) for shape in _MAPS)
    if feature == "cosine":  # as many values, or a multiple of them
        teacher_maps = _values(_BATCH, 32, 8, 8)
    terms = () if feature is None else (FeatureTerm(feature, "a", "b"),)
    settings = {"temperature": 4.0, **settings}
    if terms:
        settings |= {"feature_weight": 1.0, "feature_terms": terms}
    objective = Objective(0.5, soft_weight, **settings)
    features = {"b": teacher_maps.float()} if terms else {}
    targets = _largest() if top_k else DenseTargets(_values(_BATCH, _CLASSES), features)
    mix = Mix(_labels(), _labels(), _values(_BATCH)) if mixed else None
    adapter = HintRegressor(*_MAPS).to(CUDA, dtype) if feature == "hint" else None

    def batch() -> Tensor:
        mapped = [maps if adapter is None else adapter(maps)] if terms else []
        losses = objective(student_BC, targets, labels_B, mix, None, mapped)
        losses.by_name()
        return losses.total()

    return batch


def _values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=CUDA)


def _labels() -> Tensor:
    return torch.empty(_BATCH, dtype=torch.int64, device=CUDA)


def _largest() -> TopKTargets:
    ids_BK = torch.empty(_BATCH, _TOP_K, dtype=torch.int32, device=CUDA)
    tails_BG = _values(_BATCH, len(_GRID))
    return TopKTargets(ids_BK, _values(_BATCH, _TOP_K), tails_BG, _GRID, _CLASSES)
