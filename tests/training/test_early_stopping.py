"""Plateaus and early ends: counted as Keras and torch count them."""

import random

import pytest
import torch

from kdscale.training.early_stopping import SMALLEST_FALL, PlateauTracker
from kdscale.training.optim import Schedule
from kdscale.training.trainer import TrainerState


def noted(patience, losses):
    """The state after each of the losses."""
    state = TrainerState()
    for loss in losses:
        patience.note(state, loss)
        yield state


@pytest.mark.parametrize("reduce_after", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_learning_rate_falls_where_torchs_does(reduce_after, seed):
    draw = random.Random(seed)
    losses = [1 / (1 + epoch) + draw.random() / 5 for epoch in range(60)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=reduce_after - 1, threshold=SMALLEST_FALL,
        threshold_mode="abs", eps=0,
    )  # fmt: skip
    schedule, expected, found = Schedule("plateau", 0.1, 60, gamma=0.5), [], []
    for loss, state in zip(losses, noted(PlateauTracker(reduce_after), losses), strict=True):
        theirs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
        found.append(schedule(0, state.plateaus))
    assert found == pytest.approx(expected)
    assert found[-1] < 0.1


def test_training_ends_after_so_many_evaluations_without_a_smaller_loss():
    losses = [1.0, 0.9, 0.95, 0.91, 0.8, 0.8, 0.9, 0.81]
    ended = [state.ended_early for state in noted(PlateauTracker(stop_after=3), losses)]
    assert ended == [False] * 7 + [True]


def test_falling_learning_rate_does_not_put_off_the_end():
    states = list(noted(PlateauTracker(reduce_after=2, stop_after=4), [1.0] * 5))
    assert (states[-1].plateaus, states[-1].ended_early) == (2, True)


def test_end_is_reported_without_a_lower_learning_rate_that_nothing_will_be_trained_at(caplog):
    caplog.set_level("INFO", logger="kdscale")
    list(noted(PlateauTracker(reduce_after=1, stop_after=1), [1.0, 1.0]))
    assert caplog.messages == ["the validation loss has not fallen in 1 evaluation: training ends"]


def test_fall_too_small_to_count_is_none():
    (*_, state) = noted(PlateauTracker(stop_after=2), [1.0, 1.0 - SMALLEST_FALL / 2] * 2)
    assert state.ended_early
    assert state.smallest_validation_loss == 1.0


def test_patience_that_nothing_asks_for_ends_and_lowers_nothing():
    (*_, state) = noted(PlateauTracker(), [1.0] * 50)
    assert (state.plateaus, state.ended_early) == (0, False)
