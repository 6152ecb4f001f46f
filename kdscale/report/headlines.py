"""Sentences at the top of a report: accuracy gained, and its cost."""

import re
from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from kdscale.formatting import duration_text, number_of, spread
from kdscale.report.entry import Entry, gains
from kdscale.report.model import Comparison, SweepResults, value_text
from kdscale.report.training_cost import SweepCost, TrainingCost, cost_of, cost_of_sweep

_MOST_STUDENTS = 2
"""Kinds of cached students above which they share one sentence."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def with_unbroken_units(words: str) -> str:
    """Return a text with no-break spaces between numbers and their units."""
    words = re.sub(r"(?<=\d) (?=(?:s|ms|min|h|days|points)\b|[%±])", "\u00a0", words)
    return re.sub(r"± (?=\d)", "±\u00a0", words)


def sentence(words: str) -> str:
    """Return a text with a capital first letter."""
    return words[:1].upper() + words[1:]


def headlines(study: Comparison) -> list[str]:
    """Return paragraphs on what students gain and cost, those trained from a cache first."""
    cached = [one for one in study.of_kind("cache") if one.finished and not one.is_trial]
    found = [words for words in [_against_teacher(study)] if words]
    if len(cached) > _MOST_STUDENTS:
        found.append(_many(cached))
    else:
        found += [words for entry in cached for words in _cached_student(study, entry)]
    found += [_sweep_text(study, sweep) for sweep in study.sweeps]
    if not cached and not study.sweeps:
        done = [entry for entry in study.entries if entry.finished]
        found += [_single(entry) for entry in done if entry.kind != "teacher" or len(done) == 1]
    return found or ["No run is finished yet."]


def _against_teacher(study: Comparison) -> str:
    """Return how much accuracy the main student keeps, and how much cheaper it is to run."""
    main = study.main
    teacher = None if main is None or main.kind == "teacher" else study.peer(main, "teacher")
    if main is None or teacher is None:
        return ""
    top1, reference = main.mean("top1_accuracy"), teacher.mean("top1_accuracy")
    if top1 is None or not reference:
        return ""
    batch = next((b for b in (64, 1) if _latency(main, b) and _latency(teacher, b)), 1)
    gains_of = [
        _times(teacher.mean("num_parameters"), main.mean("num_parameters"), "fewer", "parameters"),
        _times(teacher.mean("flops"), main.mean("flops"), "fewer", "FLOPs"),
        _times(_latency(teacher, batch), _latency(main, batch), "lower",
               f"latency at batch {batch}"),
    ]  # fmt: skip
    known = [words for words in gains_of if words]
    cost = f" at {', '.join(known)}" if known else ""
    share = 100 * top1 / reference
    return f"{sentence(main.phrase)} keeps {share:.1f} % of the teacher's top-1{cost}."


def _latency(entry: Entry, batch: int) -> float | None:
    seconds = entry.latencies(batch, "median_seconds")
    return mean(seconds) if seconds else None


def _times(teacher: float | None, student: float | None, less: str, of: str) -> str:
    """Return `4.1 times fewer parameters`; empty where a value is unknown or both are equal."""
    if not teacher or not student:
        return ""
    ratio = teacher / student
    if 0.95 < ratio < 1.05:
        return ""
    number = max(ratio, 1 / ratio)
    more = {"fewer": "more", "lower": "higher"}[less]
    digits = 0 if number >= 20 else 1
    return f"{number:.{digits}f} times {less if ratio > 1 else more} {of}"


def _cached_student(study: Comparison, entry: Entry) -> Iterator[str]:
    alone, online = study.peer(entry, "alone"), study.peer(entry, "online")
    who = f" ({entry.setting})" if entry.setting else ""
    reached = f"With the cached teacher, the student{who} reaches {_accuracy(entry)} top-1"
    if alone is not None and (ahead := _ahead(entry, alone)) is not None:
        reached += f", {_difference(*ahead)} the {_accuracy(alone)} of the student alone"
        reached += _shared_seeds(entry, alone)
    yield f"{reached}. {_against_online(entry, online)}".strip()
    cost = cost_of(study, entry)
    if cost is not None:
        yield _cost_text(cost)


def _many(entries: Sequence[Entry]) -> str:
    known = [100 * top1 for entry in entries if (top1 := entry.mean("top1_accuracy")) is not None]
    reach = f" reach {min(known):.2f} to {max(known):.2f} % top-1" if known else " are finished"
    return f"{len(entries)} kinds of students with a cached teacher{reach}."


def _accuracy(entry: Entry) -> str:
    values = entry.values("top1_accuracy")
    return f"{spread([100 * value for value in values], 2)} %" if values else "an unknown"


def _difference(gain: float, width: float) -> str:
    """Return `1.2 points more than`, with the spread over seeds where there are several."""
    if not width and not round(gain, 2):
        return "as much as"
    if abs(gain) <= width:
        return f"within the spread of seeds ({gain:+.2f} ± {width:.2f} points) of"
    points = f"{abs(gain):.2f}" + (f" ± {width:.2f}" if width else "")
    return f"{points} points {'more' if gain > 0 else 'less'} than"


def _ahead(entry: Entry, other: Entry) -> tuple[float, float] | None:
    """Return the mean difference in top-1 and its standard deviation, over shared seeds if any.

    None where the top-1 of one is not known.
    """
    ahead = gains(entry, other)
    if ahead:
        return mean(ahead), stdev(ahead) if len(ahead) > 1 else 0.0
    ours, theirs = entry.mean("top1_accuracy"), other.mean("top1_accuracy")
    return None if ours is None or theirs is None else (100 * (ours - theirs), 0.0)


def _shared_seeds(entry: Entry, other: Entry) -> str:
    """Return a remark where the two do not have the same seeds."""
    if entry.seeds == other.seeds:
        return ""
    shared = set(entry.seeds) & set(other.seeds)
    return f" (of {number_of(len(shared), 'shared seed')})" if shared else " (of other seeds)"


def _against_online(entry: Entry, online: Entry | None) -> str:
    ahead = None if online is None else _ahead(entry, online)
    if online is None or ahead is None:
        return ""
    gain, width = ahead
    if not round(gain, 2) and not width:
        words = ", as much"
    elif width and abs(gain) <= width:
        words = f", the same within the spread of seeds ({-gain:+.2f} ± {width:.2f} points)"
    else:
        words = f", {abs(gain):.2f} points {'less' if gain > 0 else 'more'}"
    seeds = _shared_seeds(entry, online)
    return f"With an online teacher it reaches {_accuracy(online)}{words}{seeds}."


def _cost_text(cost: TrainingCost) -> str:
    words = f"It trains for {duration_text(cost.cached_seconds)}"
    if cost.alone_seconds:
        words += f", alone for {duration_text(cost.alone_seconds)}"
    if cost.online_seconds and cost.measured:
        words += f", with an online teacher for {duration_text(cost.online_seconds)}"
    words += f". The cache took {duration_text(cost.build_seconds)}, once for all students"
    if cost.online_seconds is None:
        return f"{words}."
    estimated = (
        ""
        if cost.measured
        else f" (estimated from online steps, which take {cost.ratio:.1f} times as long)"
    )
    if cost.break_even is None:
        return f"{words}, and saves no time{estimated}."
    return f"{words}, and pays off from the {_ordinal(cost.break_even)} student on{estimated}."


def _ordinal(number: int) -> str:
    if number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{ending or 'th'}"


def _sweep_text(study: Comparison, sweep: SweepResults) -> str:
    return " ".join([_sweep_cost(sweep, cost_of_sweep(study, sweep)), _best(sweep)]).strip()


def _sweep_cost(sweep: SweepResults, cost: SweepCost) -> str:
    done, trials = len(sweep.finished), sweep.num_trials
    some = "" if done == trials else f", {done} of them to the end"
    words = [f"{number_of(trials, 'trial')} of {sweep.among or sweep.name}{some}"]
    words.append(f"trained for {duration_text(cost.train_seconds)} in all")
    if sweep.seconds:
        words.append(f"within {duration_text(sweep.seconds)}")
    if cost.build_seconds:
        words.append(f"from one cache that was built in {duration_text(cost.build_seconds)}")
    text = ", ".join(words)
    if cost.online_seconds is None or cost.teacher_seconds_per_image is None:
        return f"{text}."
    return (
        f"{text}; with an online teacher they would have trained for "
        f"{duration_text(cost.online_seconds)}, estimated from "
        f"{1000 * cost.teacher_seconds_per_image:.3g} ms of teacher for each image."
    )


def _best(sweep: SweepResults) -> str:
    best = sweep.best
    if best is None:
        return ""
    settings = ", ".join(f"{name} {value_text(value)}" for name, value in best.parameters.items())
    tested = best.run.metrics.get("top1_accuracy")
    on_test = f", {100 * tested:.2f} % on the test split" if tested is not None else ""
    score = best.score
    assert score is not None, "the best trial has a score"
    what = f"Best, with {settings}" if settings else f"Best, trial {best.run.trial}"
    return f"{what}: {100 * score:.2f} % top-1 on the validation split{on_test}."


def _single(entry: Entry) -> str:
    if not entry.values("top1_accuracy"):
        return f"{sentence(entry.phrase)} has not been tested."
    seconds = entry.mean("train_seconds")
    after = f" after {duration_text(seconds)} of training" if seconds else ""
    return f"{sentence(entry.phrase)} reaches {_accuracy(entry)} top-1{after}."
