"""Short runs that are timed: what they leave out is said."""

from kdscale.commands.timing import timed_objective


def test_losses_between_features_are_not_timed_which_is_reported(load_table, caplog):
    term = {"kind": "cosine", "student": "1", "teacher": "1"}
    loss = {"hard_weight": 0.5, "soft_weight": 0.5, "feature_weight": 1.0, "features": [term]}
    objective = timed_objective(load_table(loss=loss, cache={"features": ["1"]}))
    assert not objective.feature_weight
    assert "loss.features are left out of what is timed" in caplog.text


def test_without_losses_between_features_nothing_is_reported(load_table, caplog):
    assert timed_objective(load_table()).soft_weight
    assert caplog.text == ""
