"""What a loss asks for, checked against images, views and the cache."""

import logging
from types import SimpleNamespace

import pytest

from kdscale.config import TrainSection
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.encodings import Float16, TopK
from kdscale.errors import ConfigError, DataError
from kdscale.experiment.checks import check_loss, check_stored, mention_loss, mention_steps
from kdscale.losses.objective import SOFT_LOSSES, FeatureTerm, Objective

LABELLED = SimpleNamespace(labelled=True, split="train", name="tiny")
UNLABELLED = SimpleNamespace(labelled=False, split="train", name="tiny")
PLAIN = Pipeline.parse(["random_horizontal_flip"])
MIXED = Pipeline.parse(["random_horizontal_flip", "mixup"], pairing=MixPairs(8))
TOP_K = TopK(100, 20, (1.0, 4.0))


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_labelled_plain_images_suit_every_loss(kind):
    check_loss(Objective(0.5, 0.5, kind=kind), LABELLED, PLAIN)
    check_stored(Objective(0.5, 0.5, kind=kind, standardize=True), Float16(100))


@pytest.mark.parametrize("kind", ["dkd", "nkd"])
def test_loss_of_labels_is_refused_without_them(kind):
    message = (
        rf"loss.kind = '{kind}' sets the label's class apart from the others, and split 'train' of "
        r"tiny has no labels: label it, or set loss.kind to one that takes none, 'kd', 'mse', "
        r"'dist' or 'wttm'"
    )
    with pytest.raises(DataError, match=message):
        check_loss(Objective(0.0, 1.0, kind=kind), UNLABELLED, PLAIN)


@pytest.mark.parametrize("kind", ["dkd", "nkd"])
def test_loss_of_one_label_is_refused_with_mixed_views(kind):
    with pytest.raises(ConfigError, match=f"'{kind}' .* views.operations mixes have two labels"):
        check_loss(Objective(0.0, 1.0, kind=kind), LABELLED, MIXED)


def test_losses_of_weight_0_ask_for_nothing():
    for kind in SOFT_LOSSES:
        check_loss(Objective(1.0, 0.0, kind=kind), UNLABELLED, MIXED)
        check_stored(Objective(1.0, 0.0, kind=kind, standardize=True), TOP_K)


@pytest.mark.parametrize("kind", ["kd", "wttm"])
def test_losses_over_buckets_take_a_cache_of_the_largest(kind):
    check_stored(Objective(0.5, 0.5, kind=kind), TOP_K)


@pytest.mark.parametrize(
    ("settings", "asks", "instead"),
    [
        ({"kind": "dist"}, "loss.kind = 'dist'", "loss.kind to 'kd' or 'wttm'"),
        (
            {"kind": "kd", "standardize": True},
            "loss.kind = 'kd' with loss.standardize = true",
            "loss.standardize = false",
        ),
        (
            {"kind": "mse", "standardize": True},
            "loss.kind = 'mse' with loss.standardize = true",
            "loss.standardize = false and loss.kind to 'kd' or 'wttm'",
        ),
    ],
)
def test_loss_of_all_classes_names_itself_the_encoding_and_what_to_do(settings, asks, instead):
    with pytest.raises(ConfigError) as refused:
        check_stored(Objective(0.5, 0.5, **settings), TOP_K)
    assert str(refused.value) == (
        f"{asks} needs the logits of all 100 classes, and cache.encoding = 'topk' stores the 20 "
        "largest: build a cache with cache.encoding = 'float16', 'int8' or 'int4', or set "
        f"{instead}"
    )


def test_warm_up_longer_than_the_training_is_mentioned(caplog):
    objective = Objective(0.5, 0.5, kind="dkd", warmup_epochs=20)
    with caplog.at_level(logging.WARNING):
        mention_loss(objective, 20, 1)
        assert not caplog.text
        mention_loss(objective, 5, 1)
    assert "loss.warmup_epochs is 20, the student is trained for 5" in caplog.text
    assert "soft_weight is 25 % of 0.5" in caplog.text


def test_batch_larger_than_the_data_is_mentioned_with_both_sizes(caplog):
    settings = TrainSection(epochs=3, global_batch_size=512, log_every=1)
    mention_steps(settings, num_samples=300, steps_per_epoch=1)
    (line,) = caplog.messages
    assert line.startswith("global_batch_size = 512 is more than the 300 images that an epoch")


def test_accumulation_of_a_loss_of_a_whole_batch_is_mentioned(caplog):
    with caplog.at_level(logging.WARNING):
        mention_loss(Objective(0.5, 0.5, kind="kd"), 5, 4)
        mention_loss(Objective(0.5, 0.5, kind="dist"), 5, 1)
        assert not caplog.text
        mention_loss(Objective(0.5, 0.5, kind="dist"), 5, 4)
    assert "loss.kind = 'dist' relates samples of one forward pass: with accumul" in caplog.text


def test_loss_that_leaves_the_head_untrained_is_mentioned(caplog):
    hint = (FeatureTerm("hint", "body", "body"),)
    with caplog.at_level(logging.WARNING):
        mention_loss(Objective(0.0, 0.1, feature_weight=1.0, feature_terms=hint), 5, 1)
        assert not caplog.text
        mention_loss(Objective(0.0, 0.0, feature_weight=1.0, feature_terms=hint), 5, 1)
    assert "features alone train this student, and what follows them, its head" in caplog.text
