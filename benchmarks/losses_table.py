"""The page of all losses from one cache: accuracy against labels alone, and cost of a step."""

from math import sqrt
from statistics import mean, variance
from typing import Any

from kdscale.config.loss_sections import LossSection
from kdscale.formatting import NOTHING, spread
from kdscale.report.table import Table


def losses_table(losses: list[dict[str, Any]]) -> str:
    """Return both tables of what `benchmarks/losses.py` found; the first loss is labels alone."""
    alone, *others = losses
    best = sorted(
        (row for row in others if row["results"]), key=lambda row: -mean(_accuracies(row))
    )
    noise = _noise(alone, others)
    parts = [
        _accuracy_table(alone, best, noise),
        "Gain: points of top-1 over labels alone, seed by seed. Verdict: outside or within two "
        "standard errors of a gain, from the variance over seeds pooled over all losses"
        + (f" ({noise[1]:.2f} points of one seed)." if noise else "."),
    ]
    if "step_milliseconds" in alone:
        parts += [
            _cost_table([row for row in losses if "step_milliseconds" in row]),
            "Processor time of one thread, medians; quartiles of the ratio in brackets. Loss: "
            "forward and backward of all terms at samples x classes.",
        ]
    return "\n\n".join(parts)


def _accuracy_table(
    alone: dict[str, Any], rows: list[dict[str, Any]], noise: dict[int, float]
) -> str:
    lines = []
    for row in (alone, *rows):
        loss = LossSection.model_validate(row["loss"])
        weights = f"{loss.hard_weight:g} / {loss.soft_weight:g}"
        used = loss.soft_weight and loss.kind != "mse"
        line = [_name(row), f"{loss.temperature:g}" if used else "", weights]
        gains = [] if row is alone else _gains(row, alone)
        validation = [100 * one["value"] for one in row["results"]]
        line += [str(len(row["results"])), spread(_accuracies(row), 2), spread(validation, 2)]
        line += [spread(gains, 2) if gains else "", _verdict(gains, noise)]
        lines.append(line)
    header = ["loss", "temperature", "hard / soft weight", "seeds", "top-1 %", "validation %"]
    return Table([*header, "gain", "verdict"], lines).text()


def _cost_table(losses: list[dict[str, Any]]) -> str:
    sizes = losses[0]["loss_milliseconds"]
    lines = [
        [
            _name(row),
            f"{row['step_milliseconds']:.1f}",
            "{:.3f} ({:.3f} .. {:.3f})".format(row["step_over_labels"], *row["step_quartiles"]),
            *[f"{row['loss_milliseconds'][size]:.2f}" for size in sizes],
        ]
        for row in losses
    ]
    header = ["loss", "step, ms", "step / that of labels alone"]
    return Table([*header, *[f"loss of {size}, ms" for size in sizes]], lines).text()


def _name(row: dict[str, Any]) -> str:
    loss = row["loss"]
    if not loss["soft_weight"]:
        return "labels alone"
    return f"{loss['kind']}, standardised" if loss.get("standardize") else loss["kind"]


def _accuracies(row: dict[str, Any]) -> list[float]:
    return [100 * one["top1_accuracy"] for one in row["results"]]


def _gains(row: dict[str, Any], alone: dict[str, Any]) -> list[float]:
    base = {one["seed"]: 100 * one["top1_accuracy"] for one in alone["results"]}
    results = [one for one in row["results"] if one["seed"] in base]
    return [100 * one["top1_accuracy"] - base[one["seed"]] for one in results]


def _noise(alone: dict[str, Any], rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return two standard errors of a gain by the number of seeds, from pooled variances."""
    gains = [gains for row in rows if len(gains := _gains(row, alone)) > 1]
    if not gains:
        return {}
    freedom = sum(len(one) - 1 for one in gains)
    pooled = sum((len(one) - 1) * variance(one) for one in gains) / freedom
    return {n: 2 * sqrt(pooled / n) for n in range(1, 1 + max(map(len, gains)))}


def _verdict(gains: list[float], noise: dict[int, float]) -> str:
    if not gains or len(gains) not in noise:
        return NOTHING
    if abs(gain := mean(gains)) <= noise[len(gains)]:
        return "level"
    return "better" if gain > 0 else "worse"
