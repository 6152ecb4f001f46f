"""Losses between features in training: adapters that are trained and saved, and then gone."""

import pytest
import torch
from safetensors.torch import load_file

from kdscale import experiment
from kdscale.commands.build import build
from kdscale.commands.train import train
from kdscale.errors import ConfigError, Interrupted
from kdscale.experiment import Experiment, Locations
from kdscale.losses.objective import FeatureTerm
from kdscale.models.weights import save_weights
from kdscale.runs import checkpoint
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.training.feature_student import StudentWithFeatures
from kdscale.training.feature_student import with_features as wrap_student

CPU = torch.device("cpu")
MAPS = {"model": "tiny_models:batch_norm", "options": {}}
KINDS = {
    "cosine": [{"kind": "cosine", "student": "4", "teacher": "4"}],
    "hint": [{"kind": "hint", "student": "0", "teacher": "2", "options": {"kernel_size": 3}}],
    "attention": [{"kind": "attention", "student": "2", "teacher": "2"}],
    "rkd": [{"kind": "rkd", "student": "4", "teacher": "4"}],
    "two": [
        {"kind": "hint", "student": "3", "teacher": "3"},
        {"kind": "attention", "student": "2", "teacher": "2"},
    ],
}


@pytest.fixture(scope="module")
def with_features(load_table):
    """A recipe of small networks of maps, whose student learns from these features."""

    def make(features, epochs=3, **weights):
        weights = {"hard_weight": 0.5, "soft_weight": 0.25, "feature_weight": 0.25, **weights}
        return load_table(
            name="features",
            teacher={**MAPS, "train": None},
            student={**MAPS, "train": {"epochs": epochs}},
            cache={"features": ["2", "3", "4"]},
            loss={**weights, "features": features},
        )

    return make


@pytest.fixture(scope="module")
def map_teacher(tmp_path_factory, load_table, shared_root):
    """Random weights will do: features are what they are."""
    recipe = load_table(teacher={**MAPS, "train": None})
    images = experiment.training_images(recipe, shared_root, labelled=True)
    made = experiment.model_to_train(recipe, recipe.teacher, images, seed=7, what="teacher")
    path = tmp_path_factory.mktemp("maps") / "teacher.safetensors"
    save_weights(path, made.model, metadata={"preprocess": made.preprocess.describe()})
    return str(path)


@pytest.fixture
def trained(with_features, map_teacher, shared_root, tmp_path):
    """Trains a student from the features' cache, or from the live teacher."""

    def run(name, features, targets="cache", *, resume=False, **changes):
        recipe = with_features(features, **changes)
        cache = None
        if targets == "cache":
            cache = build(
                Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=map_teacher))
            )
        folder = tmp_path / name
        train(
            Experiment(
                recipe,
                Locations(
                    run=folder, cache_root=shared_root, cache=cache, teacher_weights=map_teacher
                ),
            ),
            RunSpec("student", targets, 0),
            resume=resume,
        )
        return folder

    return run


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


@pytest.fixture(scope="module")
def without(with_features, map_teacher, shared_root, tmp_path_factory):
    """The losses of an epoch that compares no features."""
    run = tmp_path_factory.mktemp("without") / "run"
    train(
        Experiment(
            with_features([], epochs=1, feature_weight=0.0),
            Locations(run=run, cache_root=shared_root, teacher_weights=map_teacher),
        ),
        RunSpec("student", "teacher", 0),
    )
    return losses(run)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_features_teach_what_those_of_a_live_teacher_do(trained, without, kind):
    """But for their rounding to float16."""
    cached, online = (losses(trained(t, KINDS[kind], t, epochs=1)) for t in ("cache", "teacher"))
    assert len(cached) == 4
    assert cached == pytest.approx(online, rel=1e-3)
    assert cached[0] != pytest.approx(without[0], rel=1e-2)


def test_adapters_are_saved_in_checkpoints_and_nowhere_else(trained):
    hint, plain = trained("hint", KINDS["hint"]), trained("plain", [], feature_weight=0.0)
    weights = [load_file(run / "weights.safetensors") for run in (hint, plain)]
    assert weights[0].keys() == weights[1].keys()
    assert (
        RunFolder(hint).read_result()["num_parameters"]
        == RunFolder(plain).read_result()["num_parameters"]
    )
    newest = checkpoint.newest(hint / "checkpoints")
    saved = {name for path in newest.glob("*.safetensors") for name in load_file(path)}
    assert any("adapters.0.map.weight" in name for name in saved)


def test_stopped_training_with_adapters_goes_on_exactly(trained, stopped_after_step):
    whole = trained("whole", KINDS["hint"])
    with stopped_after_step(5), pytest.raises(Interrupted):
        trained("parts", KINDS["hint"])
    parts = trained("parts", KINDS["hint"], resume=True)
    assert losses(parts) == losses(whole)
    ours, theirs = (load_file(run / "weights.safetensors") for run in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_adapter_learns_with_the_student(trained):
    run = trained("alone", KINDS["hint"], hard_weight=0.0, soft_weight=0.0, feature_weight=1.0)
    found = losses(run)
    assert sum(found[-4:]) < sum(found[:4]) / 2


# --------------------------------------------------------------------------- the student inside


TERM = FeatureTerm("hint", "1", "x", {"kernel_size": 1})


def student(dropout=0.5):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(4, 6),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(dropout),
        torch.nn.BatchNorm1d(6),
        torch.nn.Linear(6, 3),
    )


def test_making_adapters_changes_neither_the_student_nor_what_is_drawn_after():
    torch.manual_seed(0)
    model = student().train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    drawn = torch.get_rng_state()
    made = wrap_student(
        model, [TERM], torch.randn(5, 1, 2, 2, generator=torch.Generator()), {"x": (9,)}, 0
    )
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(part.training for part in made.modules())
    again = wrap_student(student(), [TERM], torch.zeros(2, 1, 2, 2), {"x": (9,)}, 0)
    assert torch.equal(made.adapters[0].map.weight, again.adapters[0].map.weight)


def test_features_are_those_of_the_module_before_what_follows_works_in_place():
    model = StudentWithFeatures(student(0.0), [TERM], [None]).train()
    inputs = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    logits, (features,) = model(inputs)
    assert torch.equal(features, model.student[1](inputs.flatten(1)))
    assert (features < 0).any()
    assert torch.equal(logits, model.student(inputs))


def test_student_in_evaluation_gives_logits_alone():
    model = StudentWithFeatures(student(), [TERM], [None]).eval()
    assert model(torch.zeros(2, 1, 2, 2)).shape == (2, 3)


@pytest.mark.parametrize("calls", [0, 2])
def test_module_without_one_output_is_named(calls):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.odd = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, inputs):
            for _ in range(calls):
                inputs = self.odd(inputs)
            return self.body(inputs)

    model = StudentWithFeatures(Odd(), [FeatureTerm("cosine", "odd", "x")], [None])
    said = "takes no part" if calls == 0 else "is called twice"
    with pytest.raises(ConfigError, match=f"'odd' .*{said}.* name another one in loss.features"):
        model(torch.zeros(2, 4))


def test_unknown_module_of_the_student_is_named_before_anything_is_built(
    with_features, map_teacher, shared_root
):
    recipe = with_features([{"kind": "cosine", "student": "9", "teacher": "4"}])
    with pytest.raises(ConfigError, match="the student has no module '9'"):
        experiment.check_recipe(recipe, shared_root)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            {"kind": "attention", "student": "4", "teacher": "2"},
            r"got features \[4\] of the student",
        ),
        ({"kind": "hint", "student": "4", "teacher": "2"}, "wanted two vectors or two maps"),
        ({"kind": "cosine", "student": "3", "teacher": "4"}, "compares 144 features .* with 4"),
    ],
)
def test_features_that_cannot_be_compared_are_named_before_anything_is_built(
    with_features, shared_root, term, message
):
    with pytest.raises(ConfigError, match=rf"loss\.features with student = .*{message}"):
        experiment.check_recipe(with_features([term]), shared_root)


def test_memory_of_targets_counts_their_features(with_features, map_teacher, shared_root, tmp_path):
    """Logits alone would fit into it whole."""
    recipe = with_features(KINDS["attention"])
    cache = build(
        Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=map_teacher))
    )
    limit = 60_000
    limited = recipe.model_copy(
        update={"cache": recipe.cache.model_copy(update={"targets_memory": limit})}
    )
    found = train(
        Experiment(
            limited,
            Locations(
                run=tmp_path / "run",
                cache_root=shared_root,
                cache=cache,
                teacher_weights=map_teacher,
            ),
        ),
        RunSpec("student", "cache", 0),
    )
    assert found["reading"]["num_windows"] > 1
    assert found["reading"]["held_bytes"] <= limit
