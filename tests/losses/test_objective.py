"""The objective: each loss by its name, what it asks for, and its warm-up."""

import math
from inspect import signature
from pathlib import Path

import pytest
import torch

from kdscale.config import FeatureLossSection, parse_recipe
from kdscale.errors import ConfigError
from kdscale.losses.features import HintRegressor, cosine_loss
from kdscale.losses.logits import (
    bucket_kl_loss,
    bucket_wttm_loss,
    dist_loss,
    kl_loss,
    label_loss,
    mse_loss,
    standardized,
    wttm_loss,
)
from kdscale.losses.objective import FEATURE_LOSSES, SOFT_LOSSES, SUPERVISED, FeatureTerm, Objective
from kdscale.losses.target_class import dkd_loss, nkd_loss
from kdscale.published_losses import LOGIT_LOSSES
from kdscale.targets import DenseTargets, Mix, TopKTargets

LABELS = torch.arange(9) % 7
T = 2.0
EXPECTED = {
    "kd": lambda s, t: kl_loss(s, t, T),
    "mse": mse_loss,
    "dkd": lambda s, t: dkd_loss(s, t, LABELS, T),
    "nkd": lambda s, t: nkd_loss(s, t, LABELS, T),
    "dist": lambda s, t: dist_loss(s, t, T),
    "wttm": lambda s, t: wttm_loss(s, t, T),
}
each_kind = pytest.mark.parametrize("kind", SOFT_LOSSES)


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(0)
    return [3 * torch.randn(9, 7, generator=random) for _ in range(2)]


@pytest.fixture
def largest(logits):
    best = logits[1].topk(3, dim=1)
    rest = logits[1].scatter(1, best.indices, -math.inf)
    tails = torch.stack([(rest / one).logsumexp(1) for one in (1.0, 2.0)], dim=1)
    return TopKTargets(best.indices.int(), best.values, tails, (1.0, 2.0), 7)


@pytest.fixture
def mixed():
    return Mix(torch.arange(9).flip(0), LABELS.flip(0), torch.full((9,), 0.7))


def test_every_kind_is_tested():
    assert EXPECTED.keys() == SOFT_LOSSES.keys()


@pytest.mark.parametrize("standardize", [False, True])
@each_kind
def test_objective_adds_its_terms_at_their_weights(logits, kind, standardize):
    student, teacher = logits
    objective = Objective(0.3, 0.9, T, kind=kind, standardize=standardize)
    found = objective(student, DenseTargets(teacher), LABELS).total()
    compared = [standardized(one) for one in logits] if standardize else logits
    expected = 0.3 * label_loss(student, LABELS) + 0.9 * EXPECTED[kind](*compared)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dkd", {"target_weight": 0.5}),
        ("dkd", {"target_weight": 0.5, "non_target_weight": 2.0}),
        ("nkd", {"non_target_weight": 3.0}),
        ("dist", {"intra_weight": 2.0}),
    ],
)
def test_options_reach_the_loss(logits, kind, options):
    student, teacher = logits
    objective = Objective(0, 1, T, kind=kind, options=options)
    found = objective(student, DenseTargets(teacher), LABELS).total()
    functions = {"dkd": dkd_loss, "nkd": nkd_loss}
    arguments = [student, teacher, LABELS] if kind in functions else [student, teacher]
    expected = functions.get(kind, dist_loss)(*arguments, T, **options)
    assert found.item() == expected.item()
    assert found.item() != pytest.approx(EXPECTED[kind](*logits).item(), rel=1e-3)


def test_functions_take_the_published_settings_that_recipes_fill_in(recipe_table):
    assert SOFT_LOSSES.keys() == LOGIT_LOSSES.keys()
    for kind, published in LOGIT_LOSSES.items():
        recipe = parse_recipe(recipe_table(loss={"kind": kind}), "tiny")
        parameters = signature(SOFT_LOSSES[kind].of_all).parameters
        defaults = {name: parameters[name].default for name in published.options}
        assert recipe.loss.options == published.options == defaults
        assert recipe.loss.temperature == published.temperature
        assert published.softened == ("temperature" in parameters)
        if published.softened:
            assert parameters["temperature"].default == published.temperature, kind


def test_functions_take_the_feature_options_that_recipes_fill_in():
    for kind, loss in FEATURE_LOSSES.items():
        found = FeatureLossSection(kind=kind, student="a", teacher="b").options
        parameters = signature(HintRegressor if loss.mapped else loss.of_features).parameters
        options = {
            name: one.default for name, one in parameters.items() if one.default != one.empty
        }
        assert found == options, kind


def test_page_of_losses_says_what_the_code_does():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()
            if line.startswith("| `")][: len(SOFT_LOSSES)]  # fmt: skip
    assert [row[0] for row in rows] == [f"`{kind}`" for kind in SOFT_LOSSES]
    for (_, _, _, options, temperature, needs), (kind, loss) in zip(
        rows, SOFT_LOSSES.items(), strict=True
    ):
        assert options == ", ".join(
            f"`{name}` {value:g}" for name, value in LOGIT_LOSSES[kind].options.items()
        )
        default = signature(loss.of_all).parameters.get("temperature")
        assert temperature == (f"{default.default:g}" if default else "")
        asked = Objective(0.0, 1.0, kind=kind).requires - {"labels"}
        assert set(filter(None, needs.split(", "))) == asked


# --------------------------------------------------------------------------- what it asks for


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"kind": "kd"}, set()),
        ({"kind": "mse"}, {"all classes"}),
        ({"kind": "dkd"}, {"labels", "one label", "all classes"}),
        ({"kind": "nkd"}, {"labels", "one label", "all classes"}),
        ({"kind": "dist"}, {"whole batch", "all classes"}),
        ({"kind": "wttm"}, set()),
        ({"kind": "kd", "standardize": True}, {"all classes"}),
        ({"kind": "wttm", "standardize": True}, {"all classes"}),
    ],
)
def test_objective_says_what_it_asks_for(settings, needs):
    assert Objective(0.0, 1.0, **settings).requires == needs
    assert Objective(1.0, 1.0, **settings).requires == needs | {"labels"}
    assert Objective(1.0, 0.0, **settings).requires == {"labels"}


@pytest.mark.parametrize(("kind", "loss"), [("kd", bucket_kl_loss), ("wttm", bucket_wttm_loss)])
def test_loss_of_the_largest_classes_is_the_buckets(logits, largest, kind, loss):
    found = Objective(0.3, 0.9, T, kind=kind)(logits[0], largest, LABELS).total()
    expected = 0.3 * label_loss(logits[0], LABELS) + 0.9 * loss(logits[0], largest, T)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["mse", "dkd", "nkd", "dist"])
def test_loss_that_takes_all_classes_refuses_the_largest_by_name(logits, largest, kind):
    message = rf"loss.kind = '{kind}' needs the logits of all 7 classes, the cache stores the larg"
    with pytest.raises(ConfigError, match=message):
        Objective(0.5, 0.5, T, kind=kind)(logits[0], largest, LABELS)


def test_standardized_loss_refuses_the_largest_by_name(logits, largest):
    with pytest.raises(ConfigError, match=r"'kd' with loss\.standardize needs the logits of all"):
        Objective(0.5, 0.5, T, standardize=True)(logits[0], largest, LABELS)


@pytest.mark.parametrize("kind", ["dkd", "nkd"])
def test_loss_of_one_label_refuses_mixed_images_by_name(logits, mixed, kind):
    with pytest.raises(ConfigError, match=f"loss.kind = '{kind}' .* mixed images have two labels"):
        Objective(0.0, 1.0, T, kind=kind)(logits[0], DenseTargets(logits[1]), LABELS, mixed)


@pytest.mark.parametrize("kind", ["kd", "mse", "dist", "wttm"])
def test_loss_without_labels_takes_mixed_images_and_unlabelled_ones(logits, mixed, kind):
    unlabelled = torch.full((9,), -1)
    objective = Objective(0.0, 1.0, T, kind=kind)
    found = objective(logits[0], DenseTargets(logits[1]), unlabelled, mixed).total()
    assert found.item() == EXPECTED[kind](*logits).item()


def test_objective_without_hard_weight_never_looks_at_labels(logits):
    unlabelled = torch.full((9,), -1)
    found = Objective(0.0, 1.0, T)(logits[0], DenseTargets(logits[1]), unlabelled).total()
    assert found.item() == kl_loss(*logits, T).item()


def test_supervised_objective_is_cross_entropy_at_weight_one(logits):
    assert torch.equal(SUPERVISED(logits[0], None, LABELS).total(), label_loss(logits[0], LABELS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dk"}, "no loss 'dk': known are kd, mse, dkd, nkd, dist, wttm"),
        ({"kind": "nkd", "options": {"gamma": 1.5}}, "'nkd' has no option 'gamma': known are non_"),
        ({"kind": "kd", "options": {"gamma": 1.5}}, "'kd' has no option 'gamma': it has none"),
    ],
)
def test_objective_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Objective(0.5, 0.5, **settings)


def test_terms_are_weighted_and_sum_to_the_total(logits):
    features = {"a": torch.ones(9, 4), "b": torch.arange(36.0).reshape(9, 4)}
    terms = tuple(FeatureTerm("cosine", "student", name) for name in features)
    objective = Objective(0.3, 0.9, T, feature_weight=2.0, feature_terms=terms)
    mapped = [torch.arange(36.0).reshape(9, 4).requires_grad_() for _ in terms]
    losses = objective(logits[0], DenseTargets(logits[1], features), LABELS, features=mapped)
    parts = losses.by_name()
    assert list(parts) == ["hard_loss", "soft_loss", "feature_loss"]
    assert parts["hard_loss"].item() == pytest.approx(0.3 * label_loss(logits[0], LABELS).item())
    assert parts["soft_loss"].item() == pytest.approx(0.9 * kl_loss(*logits, T).item())
    cosines = sum(cosine_loss(one, features[name]) for one, name in zip(mapped, "ab", strict=True))
    assert parts["feature_loss"].item() == pytest.approx(2 * cosines.item(), rel=1e-6)
    assert sum(parts.values()).item() == pytest.approx(losses.total().item(), rel=1e-6)
    assert not any(part.requires_grad for part in parts.values())
    assert losses.total().requires_grad


# --------------------------------------------------------------------------- warm-up


def test_warm_up_rises_by_whole_epochs_to_all_of_the_weight():
    objective = Objective(0.0, 1.0, kind="dkd", warmup_epochs=20)
    assert [objective.warmup(epoch) for epoch in (0, 9, 18, 19, 20, 300)] == [
        1 / 20, 10 / 20, 19 / 20, 1.0, 1.0, 1.0,
    ]  # fmt: skip
    assert objective.warmup(None) == 1.0
    assert Objective(0.0, 1.0).warmup(0) == 1.0


def test_warm_up_weighs_the_soft_term_alone(logits):
    objective = Objective(0.4, 0.8, T, kind="dkd", warmup_epochs=4)
    found = objective(logits[0], DenseTargets(logits[1]), LABELS, epoch=1).total()
    expected = 0.4 * label_loss(logits[0], LABELS) + 0.8 * 2 / 4 * EXPECTED["dkd"](*logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
