"""Settings of a training that never take effect are said, and no others are."""

import pytest

from kdscale.config import ineffective_settings, load_recipe, parse_recipe, recipe_names


def said_of(recipe_table, **train):
    train = {"epochs": 10, **train}
    table = recipe_table(data={"validation": 0.25}, student={"train": None})
    table["student"]["train"] = train
    return ineffective_settings(parse_recipe(table, "recipe"), "student")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"schedule": "steps", "milestones": [5, 10]}, "milestones: 10 is never reached"),
        ({"schedule": "steps", "milestones": [60, 90]}, "milestones: 60, 90 is never reached"),
        ({"schedule": "steps"}, "milestones names no epoch"),
        ({"schedule": "steps", "milestones": [5], "gamma": 1.0}, "gamma = 1.0"),
        ({"schedule": "cosine", "milestones": [5]}, "milestones = [5] has no effect"),
        ({"schedule": "cosine", "gamma": 0.2}, "gamma = 0.2 has no effect"),
        ({"schedule": "cosine", "patience": 2}, "patience = 2 has no effect"),
        ({"schedule": "cosine", "warmup_epochs": 10.0}, "never falls"),
        ({"schedule": "one_cycle", "warmup_epochs": 10.0}, "never falls"),
        ({"schedule": "plateau", "patience": 9}, "there are 10 evaluations"),
        ({"schedule": "plateau", "evaluate_every": 5, "patience": 1}, "there are 2 evaluations"),
        ({"stop_after": 9}, "stop_after = 9 never ends training"),
        ({"evaluate_every": 11}, "evaluate_every = 11 is more than all 10 epochs"),
        ({"restore_best": True, "evaluate_every": 10}, "there is 1 evaluation"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum = 0.5 has no effect"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov = true has no effect"),
        ({"decay_norm_and_bias": False}, "weight_decay is 0"),
        ({"schedule": "steps", "milestones": [5], "cooldown_epochs": 1.0}, "cooldown_epochs = 1.0"),
        ({"min_learning_rate": 1e-4}, "min_learning_rate = 0.0001 has no effect"),
        ({"optimizer": "timm/lamb", "nesterov": True}, "nesterov = true has no effect"),
    ],
)
def test_setting_that_never_acts_is_reported(recipe_table, settings, part):
    (sentence,) = said_of(recipe_table, **settings)
    assert sentence.startswith("student.train.")
    assert part in sentence


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "steps", "milestones": [9]},
        {"schedule": "plateau", "patience": 8},
        {"schedule": "plateau", "gamma": 0.5},
        {"stop_after": 8},
        {"evaluate_every": 10},
        {"schedule": "cosine", "warmup_epochs": 9.5},
        {"optimizer": "sgd", "nesterov": True, "momentum": 0.5},
        {"optimizer": "timm/sgdw", "momentum": 0.5},
        {"schedule": "cosine", "cooldown_epochs": 2.0, "min_learning_rate": 1e-5},
    ],
)
def test_setting_that_acts_is_not_reported(recipe_table, settings):
    assert said_of(recipe_table, **settings) == []


@pytest.mark.parametrize("patience", [1, 3, 8, 9])
def test_patience_acts_exactly_where_it_is_not_reported(recipe_table, patience):
    from kdscale.training.early_stopping import PlateauTracker
    from kdscale.training.trainer import TrainerState

    state, counts = TrainerState(), PlateauTracker(reduce_after=patience)
    for _ in range(9):  # all but the last evaluation, after which nothing is trained
        counts.note(state, 1.0)
    never = said_of(recipe_table, schedule="plateau", patience=patience)
    assert bool(never) == (state.plateaus == 0)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_along_have_none(name):
    assert ineffective_settings(load_recipe(name), "teacher", "student") == []


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--run", "run"),
        ("train", "--run", "run", "--targets", "cache"),
        ("cache", "plan", "--seconds", 1),
    ],
)
def test_commands_say_so_before_they_begin(kdscale, write_recipe, tiny_teacher, command):
    changes = {"student.train.schedule": "steps", "student.train.milestones": [90]}
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    verb, rest = (command[:2], command[2:]) if command[0] == "cache" else (command[:1], command[1:])
    recipe = write_recipe(teacher={"weights": tiny_teacher, "train": None})
    done = kdscale(*verb, recipe, *rest, *options)
    assert done.exit_code == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert "student.train.milestones: 90 is never reached: training ends after 3 epochs" in first


def test_run_says_so_of_both_models_before_the_first_is_trained(kdscale, write_recipe):
    recipe = write_recipe(
        teacher={"train": {"epochs": 1, "gamma": 0.5}}, student={"train": {"epochs": 1}}
    )
    done = kdscale("run", recipe, "--set", "student.train.evaluate_every=2", "--run", "all")
    assert done.exit_code == 0, done.stderr
    first, second, *rest = done.stderr.splitlines()
    assert "teacher.train.gamma = 0.5 has no effect" in first
    assert "student.train.evaluate_every = 2 is more than all 1 epoch" in second
    assert not any("has no effect" in line for line in rest), "once, not for each training"


def test_steps_that_a_short_training_never_reaches_are_reported(kdscale, write_recipe):
    changes = {"log_every": 50, "checkpoint_every": 13, "warmup_epochs": 0.1}
    done = kdscale("train", write_recipe(student={"train": changes}), "--run", "run")
    assert done.exit_code == 0
    assert "log_every = 50 is more than all 12 steps" in done.stderr
    assert "checkpoint_every = 13 is more than all 12 steps" in done.stderr
    assert "warmup_epochs = 0.1 has no effect: an epoch has 4 steps" in done.stderr
