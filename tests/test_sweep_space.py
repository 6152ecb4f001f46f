"""`[sweep]` in a recipe: what it means, and what is refused before anything is trained."""

import re
import tomllib
from pathlib import Path

import pytest
import tomli_w

from kdscale.config import RangeSection, Variants, dump_recipe, load_recipe, parse_recipe
from kdscale.errors import ConfigError
from kdscale.sweep.search_space import planned

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def variants(recipe_table):
    """The tiny recipe with a sweep of a space."""

    def make(space, loss=None, **sweep):
        table = recipe_table(data={"validation": 0.25}, sweep={"space": space, **sweep})
        return Variants(table | ({"loss": loss} if loss else {}), "tiny")

    return make


def refused(make):
    with pytest.raises(ConfigError) as error:
        make()
    return str(error.value)


def test_fields_may_be_dotted_or_tables(variants):
    flat = variants({"loss.temperature": [1.0], "student.train.learning_rate": [0.1]})
    nested = variants(
        {"loss": {"temperature": [1.0]}, "student": {"train": {"learning_rate": [0.1]}}}
    )
    assert flat.sweep == nested.sweep


def test_recipe_with_a_sweep_is_written_and_read_back(variants, tmp_path):
    recipe = variants(
        {"loss.temperature": {"low": 1, "high": 4}, "student": [{"model": "a"}]}
    ).recipe
    (tmp_path / "mine.toml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe


def test_grid_has_every_combination_once(variants):
    space = {
        "loss.temperature": {"low": 1.0, "high": 2.0, "step": 0.5},
        "seed": {"low": 0, "high": 1},
    }
    points = planned(variants(space).sweep)
    assert [tuple(one.values()) for one in points] == [
        (1.0, 0), (1.0, 1), (1.5, 0), (1.5, 1), (2.0, 0), (2.0, 1)
    ]  # fmt: skip


def test_part_of_a_grid_is_taken_from_all_over(variants):
    space = {"seed": {"low": 0, "high": 999}}
    some = [one["seed"] for one in planned(variants(space, trials=20).sweep)]
    assert len(set(some)) == 20
    assert max(some) > 500
    assert [one["seed"] for one in planned(variants(space, trials=30).sweep)][:20] == some


def test_drawn_values_lie_where_they_should(variants):
    space = {
        "student.train.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "loss.soft_weight": {"low": 0.1, "high": 0.95, "step": 0.2},
        "student.options": [{"hidden": 4}, {"hidden": 8}],
    }
    points = planned(variants(space, sampler="random", trials=60).sweep)
    rates, weights, options = zip(*(one.values() for one in points), strict=True)
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 15 < sum(rate < 10**-2.5 for rate in rates) < 45  # evenly in the logarithm
    assert set(weights) == {0.1, 0.3, 0.5, 0.7, 0.9}
    assert {one["hidden"] for one in options} == {4, 8}
    again = planned(variants(space, sampler="random", trials=61).sweep)
    assert again[:60] == points


def test_field_that_follows_from_a_varied_one_still_does(variants):
    made = variants({"loss.kind": ["kd", "dist"]})
    temperatures = [made.trial({"loss.kind": kind}).loss.temperature for kind in ("kd", "dist")]
    assert temperatures == [4.0, 1.0]
    assert made.trial({"loss.kind": "kd"}).sweep is None


@pytest.mark.parametrize(
    ("loss", "left"), [({"soft_weight": 0.9}, 0.1), ({}, 0.5), ({"soft_weight": 1.0}, 0.0)]
)
def test_labels_may_weigh_what_is_left(variants, loss, left):
    made = variants({"seed": [0]}, loss, hard_weight="rest")
    assert made.trial({"seed": 0}).loss.hard_weight == left


def test_largest_number_of_views_serves_all(variants):
    assert variants({"views.count": [2, 7, 3]}).widest().views.count == 7
    assert variants({"views.count": {"low": 1, "high": 9}}).widest().views.count == 9
    assert variants({"seed": [0]}).widest().views.count == 3


@pytest.mark.parametrize(
    ("space", "sweep", "message"),
    [
        ({}, {}, "sweep.space"),
        ({"loss.temperature": 4.0}, {}, "wanted a list of values, or { low, high }"),
        ({"loss.temperature": []}, {}, "wanted a list of values"),
        ({"loss.temperature": [1.0, 1.0]}, {}, "names a value twice"),
        ({"loss.temperature": {"low": 2.0, "high": 1.0}}, {}, "low must be the smaller"),
        ({"loss.temperature": {"low": 2.0}}, {}, "high is missing"),
        ({"loss.temperature": {"low": 2.0, "high": "x"}}, {}, "high is 'x': wanted a number"),
        ({"loss.temperature": {"low": 1, "high": 2, "step": 0}}, {}, "step is 0: wanted a number"),
        ({"loss.temperature": {"low": 1.0, "high": 2.0, "stop": 1}}, {}, "did you mean 'step'"),
        ({"loss.temperature": {"low": 0.0, "high": 2.0, "log": True}}, {}, "low above 0"),
        ({"loss.temperature": {"low": 1.0, "high": 2.0}}, {}, "a grid wants a list or a step"),
        ({"loss.temperature": [1.0]}, {"trials": 2}, "the grid has 1 combinations"),
        ({"seed": {"low": 0, "high": 99999}}, {}, "the grid has 100,000 combinations"),
        ({"loss.temperature": [1.0]}, {"sampler": "tpe"}, "trials is not set"),
        ({"loss.temperature": [1.0]}, {"sampler": "grit"}, "'grid', 'random' or 'tpe'"),
        ({"views.seed": [1]}, {}, "start a sweep for each cache"),
        ({"teacher.precision": ["bfloat16"]}, {}, "start a sweep for each cache"),
        ({"cache.encoding": ["int8"]}, {}, "start a sweep for each cache"),
        ({"data.validation": [0.1]}, {}, "start a sweep for each cache"),
        ({"los.temperature": [1.0]}, {}, "did you mean 'loss'"),
        ({"seed": [0.5]}, {}, "whole numbers, 0 or more"),
        ({"seed": [1, 1 << 63]}, {}, "below 2**63"),
        ({"views.count": ["all"]}, {}, "whole numbers, 1 or more"),
        ({"loss.hard_weight": [0.5]}, {"hard_weight": "rest"}, "leave one of them out"),
    ],
)  # fmt: skip
def test_space_that_makes_no_sense_is_refused(variants, space, sweep, message):
    said = refused(lambda: variants(space, **sweep).sweep)
    assert message in said
    assert said.startswith("tiny: ")


def test_value_that_the_recipe_refuses_is_named(variants):
    said = refused(lambda: variants({"seed": [0]}).trial({"loss.temperature": -1.0}))
    assert said == (
        "tiny with loss.temperature=-1: loss.temperature is -1.0: input should be greater than or "
        "equal to 0.01"
    )
    said = refused(
        lambda: variants({"seed": [0]}, {"soft_weight": 1.5}, hard_weight="rest").trial({})
    )
    assert "leave nothing of 1" in said


def test_samples_have_every_value_and_both_ends_of_a_range(variants):
    space = {"loss.temperature": [1.0, 2.0, 3.0], "seed": [4, 5],
             "loss.soft_weight": {"low": 0.1, "high": 0.9}}  # fmt: skip
    samples = variants(space, sampler="tpe", trials=1).samples()
    assert len(samples) == 3
    assert {one["loss.temperature"] for one in samples} == {1.0, 2.0, 3.0}
    assert {one["seed"] for one in samples} == {4, 5}
    assert {one["loss.soft_weight"] for one in samples} == {0.1, 0.9}


def test_views_that_are_counted_and_views_that_are_all_do_not_mix(recipe_table):
    views = {"operations": ["random_horizontal_flip"], "count": "all"}
    table = recipe_table(
        data={"validation": 0.25}, views=views, sweep={"space": {"views.count": [1]}}
    )
    assert 'views.count is "all"' in refused(lambda: Variants(table, "tiny").sweep)


def test_range_says_which_numbers_are_whole():
    assert RangeSection(low=1, high=3).values() == [1, 2, 3]
    assert RangeSection(low=0, high=1, step=0.25).values() == [0, 0.25, 0.5, 0.75, 1.0]
    assert RangeSection(low=1, high=8, log=True).values() is None


def test_example_of_the_documentation_is_one(recipe_table):
    text = (ROOT / "docs" / "sweep.md").read_text()
    example = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    made = Variants(recipe_table(**example), "docs/sweep.md")
    assert parse_recipe(tomllib.loads(tomli_w.dumps(made.table)), "again") == made.recipe
    assert made.widest().views.count == 30
    for values in made.samples():
        made.trial(values)


def test_every_recipe_with_a_sweep_can_be_swept():
    recipe = ROOT / "kdscale" / "recipes" / "cifar10-sweep.toml"
    made = Variants(tomllib.loads(recipe.read_text()), "cifar10-sweep")
    points = planned(made.sweep)
    assert len(points) == 12
    for values in points:
        trial = made.trial(values)
        assert trial.loss.hard_weight + trial.loss.soft_weight == 1
