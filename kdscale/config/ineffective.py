"""Settings of a training that never take effect, as sentences for a warning before it starts."""

from collections.abc import Iterator

from kdscale.config.recipe import Recipe
from kdscale.config.train_section import TrainSection
from kdscale.formatting import number_of

_BELONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "milestones": ("schedule", ("steps",)),
    "gamma": ("schedule", ("steps", "plateau")),
    "patience": ("schedule", ("plateau",)),
    "cooldown_epochs": ("schedule", ("cosine",)),
    "min_learning_rate": ("schedule", ("cosine",)),
    "momentum": ("optimizer", ("sgd", "timm/")),
    "nesterov": ("optimizer", ("sgd",)),
}
"""Fields that are read only if another field has one of these values, or begins with timm/."""


def ineffective_settings(recipe: Recipe, *models: str) -> list[str]:
    """Return a sentence for each setting that has no effect on a training, or an unusual one.

    A recipe may be shortened for a trial (`--set student.train.epochs=1`), so these are warnings.

    Args:
        recipe: the recipe.
        models: the models whose training is checked: "teacher", "student", or both.
    """
    sections = {"teacher": recipe.teacher.train, "student": recipe.student.train}
    return [
        f"{model}.train.{sentence}"
        for model in models
        if (train := sections[model]) is not None
        for sentence in (*_of_another(train), *_of_schedule(train), *_of_evaluations(train))
    ]


def _of_another(train: TrainSection) -> Iterator[str]:
    """Yield settings of another schedule or optimizer, if they differ from the default."""
    for name, (chooser, readers) in _BELONG.items():
        chosen, value = getattr(train, chooser), getattr(train, name)
        of_timm = "timm/" in readers and chosen.startswith("timm/")
        if (
            chosen not in readers
            and not of_timm
            and value != TrainSection.model_fields[name].get_default(call_default_factory=True)
        ):
            words = " or ".join(repr(one) for one in readers if one != "timm/")
            yield (
                f"{name} = {_toml(value)} has no effect: it is read with {chooser} = {words}, and "
                f"{chooser} is {chosen!r}"
            )
    if not train.decay_norm_and_bias and not train.weight_decay:
        yield "decay_norm_and_bias = false has no effect: weight_decay is 0"


def _of_schedule(train: TrainSection) -> Iterator[str]:
    late = [one for one in train.milestones if one >= train.epochs]
    if train.schedule == "steps" and late:
        yield (
            f"milestones: {', '.join(map(str, late))} is never reached: training ends after "
            f"{number_of(train.epochs, 'epoch')}"
        )
    if train.schedule == "steps" and not train.milestones:
        yield "schedule = 'steps' has no effect: milestones names no epoch at which to decay"
    if train.schedule in ("steps", "plateau") and train.gamma == 1:
        yield f"gamma = 1.0: schedule {train.schedule!r} multiplies the learning rate by 1"
    if train.schedule in ("cosine", "one_cycle") and train.warmup_epochs == train.epochs:
        yield (
            f"warmup_epochs = {train.warmup_epochs:g} takes all epochs: the learning rate of "
            f"schedule {train.schedule!r} never falls"
        )


def _of_evaluations(train: TrainSection) -> Iterator[str]:
    epochs, number = number_of(train.epochs, "epoch"), -(-train.epochs // train.evaluate_every)
    there_are = f"there {'is' if number == 1 else 'are'} {number_of(number, 'evaluation')}"
    if train.evaluate_every > train.epochs:
        yield (
            f"evaluate_every = {train.evaluate_every} is more than all {epochs}: the last one "
            "alone is evaluated"
        )
    # The first evaluation is the smallest loss so far, and after the last one nothing is trained.
    if train.schedule == "plateau" and train.patience + 2 > number:
        yield (
            f"patience = {train.patience} is never exceeded: {there_are}, so the learning rate "
            "never falls"
        )
    if train.stop_after is not None and train.stop_after + 2 > number:
        yield f"stop_after = {train.stop_after} never ends training: {there_are}"
    if train.restore_best and number == 1:
        yield f"restore_best = true has no choice: {there_are}"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
