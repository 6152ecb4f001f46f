"""What a study says in sentences: what was gained, and at what cost."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from kdscale.formatting import duration_text, number_of, spread
from kdscale.report.cost import Cost, SweepCost, cost_of, cost_of_sweep
from kdscale.report.entry import Entry, gains
from kdscale.report.model import Study, Sweep, value_text

_MOST_TAUGHT = 2
"""Students of whom each is spoken of."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True, slots=True)
class Tile:
    """A number to be seen first."""

    value: str
    words: str


def kept_together(words: str) -> str:
    """Words with spaces at which no line breaks: between numbers and their units."""
    words = re.sub(r"(?<=\d) (?=(?:s|ms|min|h|days|points)\b|[%±])", "\u00a0", words)
    return re.sub(r"± (?=\d)", "±\u00a0", words)


def sentence(words: str) -> str:
    """With a capital letter, and the others as they are."""
    return words[:1].upper() + words[1:]


# --------------------------------------------------------------------------- headlines


def headlines(study: Study) -> list[str]:
    """Paragraphs: what students gained and what they cost, those that a cache taught first."""
    cached = [one for one in study.of_kind("cache") if one.finished and not one.is_trial]
    if len(cached) > _MOST_TAUGHT:
        found = [_many(cached)]
    else:
        found = [words for entry in cached for words in _taught(study, entry)]
    found += [_swept(study, sweep) for sweep in study.sweeps]
    if not found:
        done = [entry for entry in study.entries if entry.finished]
        found = [_single(entry) for entry in done if entry.kind != "teacher" or len(done) == 1]
    return found or ["No run here is finished yet."]


def _taught(study: Study, entry: Entry) -> Iterator[str]:
    alone, online = study.peer(entry, "alone"), study.peer(entry, "online")
    who = f" ({entry.setting})" if entry.setting else ""
    reached = f"Taught from the cache, the student{who} reaches {_accuracy(entry)} top-1"
    if alone is not None and (ahead := _ahead(entry, alone)) is not None:
        reached += f", {_gained(*ahead)} the {_accuracy(alone)} that it reaches alone"
        reached += _of_seeds(entry, alone)
    yield f"{reached}. {_against_online(entry, online)}".strip()
    cost = cost_of(study, entry)
    if cost is not None:
        yield _paid(cost)


def _many(entries: Sequence[Entry]) -> str:
    known = [100 * top1 for entry in entries if (top1 := entry.mean("top1_accuracy")) is not None]
    reach = f" reach {min(known):.2f} to {max(known):.2f} % top-1" if known else " are finished"
    return f"{len(entries)} kinds of students taught from a cache{reach}."


def _accuracy(entry: Entry) -> str:
    values = entry.values("top1_accuracy")
    return f"{spread([100 * value for value in values], 2)} %" if values else "an unknown"


def _gained(gain: float, width: float) -> str:
    """`1.2 points more than`, with its spread over seeds where there are several."""
    if not width and not round(gain, 2):
        return "as much as"
    if abs(gain) <= width:
        return f"which, {gain:+.2f} ± {width:.2f} points seed by seed, is not told apart from"
    shown = f"{abs(gain):.2f}" + (f" ± {width:.2f}" if width else "")
    return f"{shown} points {'more' if gain > 0 else 'less'} than"


def _ahead(entry: Entry, other: Entry) -> tuple[float, float] | None:
    """Points of top-1 and their standard deviation, seed by seed where seeds are shared.

    None where the top-1 of one is not known.
    """
    ahead = gains(entry, other)
    if ahead:
        return mean(ahead), stdev(ahead) if len(ahead) > 1 else 0.0
    ours, theirs = entry.mean("top1_accuracy"), other.mean("top1_accuracy")
    return None if ours is None or theirs is None else (100 * (ours - theirs), 0.0)


def _of_seeds(entry: Entry, other: Entry) -> str:
    """Says so where the two do not have the same seeds."""
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
    seeds = _of_seeds(entry, online)
    return f"With the teacher at every step it reaches {_accuracy(online)}{words}{seeds}."


def _paid(cost: Cost) -> str:
    words = f"It trains for {duration_text(cost.cached_seconds)}"
    if cost.alone_seconds:
        words += f", alone for {duration_text(cost.alone_seconds)}"
    if cost.online_seconds and cost.measured:
        words += f", with the teacher at every step for {duration_text(cost.online_seconds)}"
    words += f". The cache took {duration_text(cost.build_seconds)}, once for all students"
    if cost.online_seconds is None:
        return f"{words}."
    reckoned = (
        "" if cost.measured else f", reckoned from steps that take {cost.ratio:.1f} times as long"
    )
    if cost.break_even is None:
        return f"{words}, and saves no time{reckoned}."
    return f"{words}, and has paid for itself with the {_ordinal(cost.break_even)} one{reckoned}."


def _ordinal(number: int) -> str:
    if number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{ending or 'th'}"


def _swept(study: Study, sweep: Sweep) -> str:
    return " ".join([_sweep_cost(sweep, cost_of_sweep(study, sweep)), _best(sweep)]).strip()


def _sweep_cost(sweep: Sweep, cost: SweepCost) -> str:
    done, trials = len(sweep.finished), sweep.num_trials
    some = "" if done == trials else f", {done} of them to the end"
    words = [f"{number_of(trials, 'trial')} of {sweep.among or sweep.name}{some}"]
    words.append(f"trained for {duration_text(cost.train_seconds)} in all")
    if sweep.seconds:
        words.append(f"within {duration_text(sweep.seconds)}")
    if cost.build_seconds:
        words.append(f"from one cache that was built in {duration_text(cost.build_seconds)}")
    told = ", ".join(words)
    if cost.online_seconds is None or cost.teacher_seconds_per_image is None:
        return f"{told}."
    return (
        f"{told}; with the teacher at every step they would have trained for "
        f"{duration_text(cost.online_seconds)}, reckoned from "
        f"{1000 * cost.teacher_seconds_per_image:.3g} ms of teacher for each image shown."
    )


def _best(sweep: Sweep) -> str:
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


# --------------------------------------------------------------------------- tiles


def tiles(study: Study) -> list[Tile]:
    """The numbers of the main student, or of the first sweep where there is none."""
    main = study.main
    if study.sweeps and (main is None or main.kind == "teacher" or main.is_trial):
        return list(_sweep_tiles(study, study.sweeps[0]))
    return [] if main is None else [*_accuracy_tiles(study, main), *_cost_tiles(study, main)]


def _accuracy_tiles(study: Study, main: Entry) -> Iterator[Tile]:
    if (top1 := main.mean("top1_accuracy")) is not None:
        yield Tile(f"{100 * top1:.2f} %", f"top-1 of {main.phrase}")
    alone = study.peer(main, "alone") if main.kind in ("cache", "online") else None
    if alone is not None and (ahead := _ahead(main, alone)) is not None:
        yield Tile(
            f"{ahead[0]:+.2f}".replace("-", "\N{MINUS SIGN}"),
            f"points of top-1 over the student alone{_of_seeds(main, alone)}",
        )


def _cost_tiles(study: Study, main: Entry) -> Iterator[Tile]:
    cost = cost_of(study, main) if main.kind == "cache" else None
    if cost is not None and cost.online_seconds:
        times = cost.online_seconds / cost.cached_seconds
        reckoned = "" if cost.measured else ", reckoned from steps"
        yield Tile(f"{times:.1f} times", f"as long with the teacher at every step{reckoned}")
    elif cost is not None and cost.alone_seconds:
        yield Tile(
            f"{cost.cached_seconds / cost.alone_seconds:.2f} times",
            "the training time of a student alone",
        )
    teacher = study.peer(main, "teacher") if main.kind != "teacher" else None
    large = teacher.mean("num_parameters") if teacher is not None else None
    small = main.mean("num_parameters")
    if large and small:
        yield Tile(f"1 : {large / small:.1f}", "parameters, student to teacher")


def _sweep_tiles(study: Study, sweep: Sweep) -> Iterator[Tile]:
    cost = cost_of_sweep(study, sweep)
    done, trials = len(sweep.finished), sweep.num_trials
    yield Tile(f"{trials}" if done == trials else f"{done} of {trials}", "trials from one cache")
    best = sweep.best
    score = best.score if best is not None else None
    if score is not None:
        yield Tile(f"{100 * score:.2f} %", "best top-1 on the validation split")
    yield Tile(duration_text(cost.train_seconds + cost.build_seconds), "of training and building")
    if cost.online_seconds is not None:
        yield Tile(duration_text(cost.online_seconds), "with the teacher at every step, reckoned")
