"""Recipes: what is accepted, what is refused and how the refusal reads."""

import tomllib

import pytest
import tomli_w
from pydantic import ValidationError

from kdscale.config import (
    differences,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_text,
)
from kdscale.errors import ConfigError


def problem_of(table):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(table, "tiny.toml")
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_loads_and_is_named_after_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_recipe_is_read_back_equal(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe


def test_recipe_is_frozen(load_table):
    with pytest.raises(ValidationError, match="frozen"):
        load_table().loss.temperature = 2.0


def test_every_field_without_an_obvious_name_says_what_it_means():
    obvious = {"name", "description", "train", "optimizer", "weight_decay", "schedule"}

    def undescribed(section, prefix=""):
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from undescribed(inner, f"{prefix}{name}.")
            elif not field.description and name not in obvious:
                yield prefix + name

    from kdscale.config import Recipe

    assert list(undescribed(Recipe)) == []


def test_unknown_recipe_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no recipe 'mnits': did you mean 'mnist'\?"):
        load_recipe("mnits")


def test_unknown_recipe_lists_the_known_ones_when_none_is_near():
    with pytest.raises(ConfigError, match=r"known: .*mnist"):
        load_recipe("zzzzzzzz")


def test_missing_recipe_file_is_named():
    with pytest.raises(ConfigError, match=r"no recipe file 'nowhere/x\.toml'"):
        load_recipe("nowhere/x.toml")


def test_broken_toml_is_reported_with_its_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[data\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_recipe(str(path))


def test_recipe_without_a_name_is_called_after_its_file(tmp_path, recipe_table):
    import tomli_w

    path = tmp_path / "my-experiment.toml"
    path.write_text(tomli_w.dumps(recipe_table(name=None)))
    assert load_recipe(str(path)).name == "my-experiment"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"los": {}}, "unknown key 'los': did you mean 'loss'?"),
        ({"loss": {"temprature": 2.0}}, "'loss.temprature': did you mean 'temperature'?"),
        ({"loss": {"alpha": 0.5}}, "unknown key 'loss.alpha': known: "),
        (
            {"student": {"train": {"learning_rte": 0.1}}},
            "'student.train.learning_rte': did you mean 'learning_rate'?",
        ),
        ({"teacher": {"input": {"means": [0.1]}}}, "'teacher.input.means': did you mean 'mean'?"),
    ],
)
def test_unknown_key_suggests_the_nearest_one(recipe_table, changes, expected):
    assert expected in problem_of(recipe_table(**changes))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"loss": {"temperature": 0}}, "loss.temperature", "0"),
        ({"loss": {"temperature": "hot"}}, "loss.temperature", "'hot'"),
        ({"loss": {"temperature": float("inf")}}, "loss.temperature", "inf"),
        ({"loss": {"hard_weight": -1.0}}, "loss.hard_weight", "-1"),
        ({"loss": {"temperature": True}}, "loss.temperature", "True"),
        ({"loss": {"kind": "dk"}}, "loss.kind", "'dk'"),
        ({"loss": {"kind": 3}}, "loss.kind", "3"),
        ({"loss": {"warmup_epochs": -1}}, "loss.warmup_epochs", "-1"),
        ({"loss": {"standardize": "yes"}}, "loss.standardize", "'yes'"),
        ({"loss": {"options": 3}}, "loss.options", "3"),
        (
            {"loss": {"kind": "nkd", "options": {"non_target_weight": -1.0}}},
            "loss.options.non_target_weight",
            "-1.0",
        ),
        ({"views": {"count": 0}}, "views.count", "0"),
        ({"views": {"count": 1.5}}, "views.count", "1.5"),
        ({"cache": {"encoding": "float64"}}, "cache.encoding", "'float64'"),
        ({"cache": {"top_k": 0}}, "cache.top_k", "0"),
        ({"cache": {"temperatures": []}}, "cache.temperatures", "[]"),
        ({"cache": {"temperatures": [2.0, 1.0]}}, "cache.temperatures", "[2.0, 1.0]"),
        ({"cache": {"temperatures": [1.0, 1.0]}}, "cache.temperatures", "[1.0, 1.0]"),
        ({"cache": {"temperatures": [2.0, 4.0]}}, "cache.temperatures", "[2.0, 4.0]"),
        ({"cache": {"temperatures": [0.0, 1.0]}}, "cache.temperatures.0", "0.0"),
        ({"cache": {"budget_bytes": 0}}, "cache.budget_bytes", "0"),
        ({"student": {"train": {"epochs": "3"}}}, "student.train.epochs", "'3'"),
        ({"student": {"train": {"optimizer": "adamm"}}}, "student.train.optimizer", "'adamm'"),
        ({"data": {"validation": 1.0}}, "data.validation", "1.0"),
        ({"teacher": {"input": {"mean": [0.1], "std": [0.0]}}}, "teacher.input.std.0", "0.0"),
        ({"data": {"grey_range": [255, 0]}}, "data.grey_range", "[255, 0]"),
        ({"data": {"grey_range": [0]}}, "data.grey_range", "[0]"),
        ({"data": {"grey_range": ["a", 1]}}, "data.grey_range.0", "'a'"),
        ({"teacher": {"precision": "auto"}}, "teacher.precision", "'auto'"),
        ({"loss": {"temperature": 1e-30}}, "loss.temperature", "1e-30"),
        ({"loss": {"temperature": 1e30}}, "loss.temperature", "1e+30"),
        ({"loss": {"hard_weight": 1e30}}, "loss.hard_weight", "1e+30"),
        ({"loss": {"warmup_epochs": 1 << 40}}, "loss.warmup_epochs", "1099511627776"),
        ({"cache": {"temperatures": [1e-30, 1.0]}}, "cache.temperatures.0", "1e-30"),
        ({"ensemble": {"weights": [1e-30]}}, "ensemble.weights.0", "1e-30"),
        ({"student": {"train": {"learning_rate": 1e9}}}, "student.train.learning_rate", "1000000"),
        ({"student": {"train": {"gradient_clip": 1e-30}}}, "student.train.gradient_clip", "1e-30"),
        ({"teacher": {"input": {"mean": [0], "std": [1e-30]}}}, "teacher.input.std.0", "1e-30"),
        (
            {"teacher": {"input": {"mean": [0], "std": [1], "size": 1 << 20}}},
            "teacher.input.size",
            "1048576",
        ),
        ({"name": "a/b"}, "name", "'a/b'"),
    ],
)
def test_wrong_value_is_named_with_its_field(recipe_table, changes, field, value):
    problem = problem_of(recipe_table(**changes))
    assert problem.startswith(f"tiny.toml: {field} is {value}")


@pytest.mark.parametrize(("mean", "std"), [(33.3, 78.6), (0.5, 58.0), (-103.9, 1.0)])
def test_mean_and_deviation_on_0_to_255_are_refused(recipe_table, mean, std):
    problem = problem_of(recipe_table(teacher={"input": {"mean": [mean], "std": [std]}}))
    assert "scaled to 0..1" in problem
    assert "divide both by 255" in problem


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 1 / 255), (0.5, 0.5), (1.0, 1.0)])
def test_mean_and_deviation_on_0_to_1_are_taken(load_table, mean, std):
    recipe = load_table(teacher={"input": {"mean": [mean], "std": [std]}})
    assert recipe.teacher.input.mean == [mean]


@pytest.mark.parametrize(
    ("loss", "filled"),
    [
        ({}, {"temperature": 4.0, "warmup_epochs": 0, "options": {}}),
        ({"standardize": True}, {"temperature": 2.0}),
        ({"standardize": True, "temperature": 3.0}, {"temperature": 3.0}),
        ({"kind": "mse"}, {"temperature": 1.0}),
        (
            {"kind": "dkd", "options": {"non_target_weight": 2}},
            {"warmup_epochs": 20, "options": {"target_weight": 1.0, "non_target_weight": 2.0}},
        ),
        ({"kind": "dkd", "warmup_epochs": 5, "standardize": True}, {"warmup_epochs": 5}),
        ({"kind": "nkd"}, {"temperature": 1.0, "warmup_epochs": 0}),
        ({"kind": "nkd", "temperature": 2.0}, {"temperature": 2.0}),
        ({"kind": "dist"}, {"options": {"inter_weight": 1.0, "intra_weight": 1.0}}),
    ],
)
def test_loss_is_filled_in_with_what_it_was_published_with(recipe_table, loss, filled):
    recipe = parse_recipe(recipe_table(loss=loss), "tiny")
    assert recipe.loss.model_dump().items() >= filled.items()
    assert parse_recipe(tomllib.loads(dump_recipe(recipe)), "again") == recipe


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            {"kind": "dkd", "options": {"non_targt_weight": 2.0}},
            "loss: kind 'dkd' has no option 'non_targt_weight': did you mean 'non_target_weight'?",
        ),
        ({"options": {"beta": 2.0}}, "kind 'kd' has no option 'beta': known: none"),
        ({"kind": "nkd", "options": {"alpha": 1.0}}, "known: non_target_weight"),
        (
            {"kind": "mse", "temperature": 4.0},
            "'mse' compares logits as they are, temperature is 4",
        ),
        ({"kind": "mse", "standardize": True, "temperature": 4.0}, "leave it out"),
    ],
)
def test_setting_that_the_loss_does_not_have_is_refused(recipe_table, loss, expected):
    assert expected in problem_of(recipe_table(loss=loss))


COSINE = {"kind": "cosine", "student": "fc", "teacher": "fc"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": {"features": [COSINE]}}, "feature_weight is 0 and features names 1: set both"),
        ({"loss": {"feature_weight": 1.0}}, "feature_weight is 1 and features names 0: set both"),
        (
            {"loss": {"feature_weight": 1.0, "features": [COSINE]}},
            "loss.features compares with the teacher's 'fc', cache.features names none: add it",
        ),
        (
            {
                "loss": {"feature_weight": 1.0, "features": [COSINE]},
                "cache": {"features": ["fc"]},
                "views": {"mode": "fixed", "count": 1},
            },
            "views.mode is 'fixed', where the teacher's features are of other pictures",
        ),
        (
            {"loss": {"feature_weight": 1.0, "features": [{**COSINE, "studnet": "fc"}]}},
            "unknown key 'loss.features.0.studnet': did you mean 'student'?",
        ),
        (
            {"loss": {"features": [{**COSINE, "kind": "rkd", "options": {"angle_wieght": 1.0}}]}},
            "kind 'rkd' has no option 'angle_wieght': did you mean 'angle_weight'?",
        ),
    ],
)
def test_feature_losses_that_cannot_be_are_refused(recipe_table, changes, expected):
    assert expected in problem_of(recipe_table(**changes))


def test_missing_field_is_named(recipe_table):
    assert "'student.model' is missing" in problem_of(recipe_table(student={"model": None}))


def test_every_problem_is_listed_at_once(recipe_table):
    problem = problem_of(
        recipe_table(loss={"temperature": -1.0}, views={"seed": -1}, student={"modle": "x"})
    )
    assert len(problem.splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": {"hard_weight": 0, "soft_weight": 0}}, "nothing would be learned"),
        (
            {"student": {"train": {"compile": "reduce-overhead", "accumulation": 2}}},
            "CUDA graphs reuse the memory of gradients",
        ),
        (
            {"student": {"train": {"optimizer": "sgd", "nesterov": True, "momentum": 0.0}}},
            "wanted a momentum above 0",
        ),
        (
            {"student": {"train": {"schedule": "cosine", "cooldown_epochs": 0.5}}},
            "cooldown_epochs is 0.5 and min_learning_rate 0, at which nothing is learned",
        ),
        (
            {"student": {"train": {"epochs": 3, "warmup_epochs": 2.0, "cooldown_epochs": 2.0}}},
            "warmup_epochs is 2.0 and cooldown_epochs 2.0, more than all 3 epochs",
        ),
        ({"student": {"train": {"min_learning_rate": 0.5}}}, "above learning_rate, 0.01"),
        ({"student": {"train": {"optimizer": "timm/"}}}, "wanted adam, adamw, sgd or timm/NAME"),
        ({"data": {"classes": [3]}}, "at least 2 items"),
        ({"views": {"operations": [], "count": 3}}, "without operations all views are alike"),
        ({"teacher": {"input": {"mean": [0.1, 0.2]}}}, "mean has 2 values, std has 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(recipe_table, changes, expected):
    assert expected in problem_of(recipe_table(**changes))


def test_overrides_are_toml_and_bare_words_are_text():
    recipe = load_recipe(
        "mnist",
        [
            "loss.temperature=2.5",
            "student.train.schedule=cosine",
            'views.operations=[{ name = "random_crop", padding = 2 }]',
            "views.count = 4",
            "student.options.hidden=64",
        ],
    )
    assert recipe.loss.temperature == 2.5
    assert recipe.student.train is not None
    assert recipe.student.train.schedule == "cosine"
    assert recipe.views.operations == [{"name": "random_crop", "padding": 2}]
    assert recipe.views.count == 4
    assert recipe.student.options == {"hidden": 64}


def test_later_override_wins():
    recipe = load_recipe("mnist", ["loss.temperature=2", "loss.temperature=3"])
    assert recipe.loss.temperature == 3


@pytest.mark.parametrize("override", ["loss.temperature", "=3", "name.x=3"])
def test_malformed_override_is_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        load_recipe("mnist", [override])


def test_local_data_replaces_the_source_whatever_its_name():
    odd = 'a "quoted" \\ folder'
    recipe = load_recipe("mnist", ["data.revision=v1"], data=odd)
    assert (recipe.data.source, recipe.data.revision) == (odd, None)
    assert load_recipe("mnist", ["data.revision=v1"]).data.revision == "v1"


def test_recipe_text_is_the_file_as_it_is():
    assert tomllib.loads(recipe_text("mnist"))["name"] == "mnist"


def test_differences_name_every_dotted_field_with_both_values():
    ours = {"a": 1, "b": {"c": 2, "d": {"e": [1]}}, "only": None}
    theirs = {"a": 1, "b": {"c": 3, "d": {"e": [2]}}, "new": 4}
    assert differences(ours, theirs) == [
        ("b.c", 2, 3),
        ("b.d.e", [1], [2]),
        ("new", None, 4),
    ]


def test_relative_paths_are_those_beside_the_recipe_then_those_of_the_current_folder(
    tmp_path, monkeypatch, recipe_table
):
    table = recipe_table(
        data={"source": "mine"},
        teacher={"weights": "teacher.safetensors", "train": {"pretrained": "first.pt"}},
        student={"weights": "missing.safetensors"},
        ensemble={"caches": ["other.zarr", "s3://bucket/other.zarr"]},
    )
    folder = tmp_path / "recipes"
    for name in ("mine", "other.zarr", "teacher.safetensors"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "first.pt").touch()
    (tmp_path / "mine").mkdir()
    (folder / "a.toml").write_text(tomli_w.dumps(table))
    monkeypatch.chdir(tmp_path)
    found = load_recipe("recipes/a.toml")
    assert found.data.source == "recipes/mine"  # though the current folder has one, too
    assert found.teacher.weights == "recipes/teacher.safetensors"
    assert found.teacher.train.pretrained == "first.pt"
    assert found.student.weights == "missing.safetensors"
    assert found.ensemble.caches == ["recipes/other.zarr", "s3://bucket/other.zarr"]
    assert load_recipe("recipes/a.toml", ["data.source=mine"]).data.source == "mine"  # as typed
    monkeypatch.chdir(folder)
    assert load_recipe("a.toml").data.source == "mine"
    assert load_recipe(f"{folder}/a.toml").data.source == f"{folder}/mine"
