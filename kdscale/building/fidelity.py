"""What an encoding costs: stored targets against the logits that they were made from.

Shapes: B samples, C classes, K stored classes.
"""

from itertools import pairwise
from math import log

import torch
from torch import Tensor

from kdscale.evaluation.metrics import Calibration
from kdscale.targets import DenseTargets, TopKTargets, log_sums

LogitTargets = DenseTargets | TopKTargets
"""Targets that logits can be decoded from, at least the largest."""
_TEMPERATURES = (1, 2, 4)


def fidelity(
    full_BC: Tensor, stored: LogitTargets, labels_B: Tensor | None = None
) -> dict[str, float | list[float] | None]:
    """How close stored targets are to the full logits they were encoded from.

    Of top-k targets, the bucket of the rest is read as spread evenly over its classes where a value
    for each class is needed; the gradients are those of the loss, which does not assume that.

    Args:
        full_BC: the teacher's logits, float32 [B, C].
        stored: what `decode` gives back of them.
        labels_B: int64 [B], if there are any.

    Returns:
        `kl_t1`, `kl_t2`, `kl_t4`: T²·KL(full‖stored), mean over samples in nats.
        `max_probability_error`: the largest error of a probability.
        `top1_agreement`: the share of equal arg-max.
        `gradient_cosine` (T = 1), `gradient_cosine_t2`, `gradient_cosine_t4`: between the gradients
        of the soft loss that a half-trained student gets from either.
        `calibration_error`, `calibration_error_stored`: with labels, the expected calibration
        errors.
        `tail_mass`, `tail_interpolation_error`: of top-k targets, the mean probability of the rest
        at each temperature of the grid, and the largest relative error of it between them.
        None where a temperature is beyond the grid.
    """
    full = full_BC.double()
    report: dict[str, float | list[float] | None] = {}
    for temperature in _TEMPERATURES:
        report[f"kl_t{temperature}"] = _divergence(full, stored, temperature)
    p, q = full.log_softmax(1).exp(), _log_probabilities(stored, 1).exp()
    report["max_probability_error"] = float((p - q).abs().max())
    report["top1_agreement"] = float((full.argmax(1) == _first(stored)).double().mean())
    for temperature in _TEMPERATURES:
        name = "gradient_cosine" if temperature == 1 else f"gradient_cosine_t{temperature}"
        report[name] = _gradient_cosine(full, stored, temperature)
    if labels_B is not None:
        confidence_B, predicted_B = p.max(1)
        report["calibration_error"] = Calibration.of(confidence_B, predicted_B == labels_B).error
        confidence_B1, _ = stored.most_probable(1)
        report["calibration_error_stored"] = Calibration.of(
            confidence_B1[:, 0], _first(stored) == labels_B
        ).error
    if isinstance(stored, TopKTargets):
        report["tail_mass"] = [_mean_tail(stored, one) for one in stored.temperatures]
        report["tail_interpolation_error"] = _interpolation_error(full, stored)
    return report


def _first(stored: LogitTargets) -> Tensor:
    if isinstance(stored, DenseTargets):
        return stored.logits_BC.argmax(1)
    return stored.ids_BK[:, 0].long()


def _covers(stored: LogitTargets, temperature: float) -> bool:
    if isinstance(stored, DenseTargets):
        return True
    return stored.temperatures[0] <= temperature <= stored.temperatures[-1]


def _divergence(full_BC: Tensor, stored: LogitTargets, temperature: float) -> float | None:
    if not _covers(stored, temperature):
        return None
    p = torch.log_softmax(full_BC / temperature, 1)
    q = _log_probabilities(stored, temperature)
    return max(0.0, float((p.exp() * (p - q)).sum(1).mean() * temperature**2))


def _log_probabilities(stored: LogitTargets, temperature: float) -> Tensor:
    """Float64 [B, C], the rest evenly spread."""
    if isinstance(stored, DenseTargets):
        return torch.log_softmax(stored.logits_BC.double() / temperature, 1)
    buckets = stored.bucket_logits(temperature).double().log_softmax(1)
    others = stored.num_classes - stored.ids_BK.shape[1]
    each_BC = (buckets[:, -1:] - log(others)).repeat(1, stored.num_classes)
    return each_BC.scatter(1, stored.ids_BK.long(), buckets[:, :-1])


def _gradient_cosine(full_BC: Tensor, stored: LogitTargets, temperature: float) -> float | None:
    """Over the gradients of all samples, towards a student halfway between chance and teacher."""
    if not _covers(stored, temperature):
        return None
    noise = torch.randn(
        full_BC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    student_BC = (full_BC + noise * full_BC.std(1, keepdim=True)) / 2
    q = (student_BC / temperature).softmax(1)
    exact = q - (full_BC / temperature).softmax(1)
    found = q - _pull(stored, q, temperature)
    return float(torch.cosine_similarity(exact.flatten(), found.flatten(), dim=0))


def _pull(stored: LogitTargets, student_BC: Tensor, temperature: float) -> Tensor:
    """The probabilities that the soft loss pulls a student to.

    Its gradient is T times the student's probabilities minus these. A bucket pulls its classes in
    proportion to what the student gives them: which of them it should be is unknown.
    """
    if isinstance(stored, DenseTargets):
        return _log_probabilities(stored, temperature).exp()
    buckets, ids_BK = stored.bucket_logits(temperature).double().softmax(1), stored.ids_BK.long()
    rest_BC = student_BC.scatter(1, ids_BK, 0.0)
    rest_BC = rest_BC / rest_BC.sum(1, keepdim=True) * buckets[:, -1:]
    return rest_BC.scatter(1, ids_BK, buckets[:, :-1])


def _mean_tail(stored: TopKTargets, temperature: float) -> float:
    return float(stored.bucket_logits(temperature).double().softmax(1)[:, -1].mean())


def _interpolation_error(full_BC: Tensor, stored: TopKTargets) -> float:
    """The largest relative error of a tail's mass, at three points between temperatures."""
    grid = [1 / one for one in stored.temperatures]
    between = [
        1 / (one + (other - one) * share)
        for one, other in pairwise(grid)
        for share in (0.25, 0.5, 0.75)
    ]
    if not between:
        return 0.0
    rest_BC = full_BC.scatter(1, stored.ids_BK.long(), -torch.inf)
    exact = log_sums(rest_BC, between)
    errors = []
    for number, temperature in enumerate(between):
        buckets = stored.bucket_logits(temperature).double()
        found = buckets.log_softmax(1)[:, -1]
        buckets[:, -1] = exact[:, number]
        errors.append((found - buckets.log_softmax(1)[:, -1]).expm1().abs().max())
    return float(torch.stack(errors).max())
