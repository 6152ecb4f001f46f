"""Waiting ends when something is ready, after some seconds, or by an error."""

import pytest

from kdscale import polling


@pytest.fixture
def pauses(monkeypatch):
    """Seconds of each pause, which take no time."""
    found, now = [], [0.0]

    def sleep(seconds):
        found.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(polling.time, "sleep", sleep)
    monkeypatch.setattr(polling.time, "monotonic", lambda: now[0])
    return found


def test_value_that_is_ready_is_returned_at_once(pauses):
    assert polling.wait_until(lambda: "here", first=lambda: pytest.fail("it waited")) == "here"
    assert pauses == []


def test_waiting_is_mentioned_once_and_checked_each_time(pauses):
    values, mentions, checks = iter([None, 0, "here"]), [], []
    found = polling.wait_until(
        lambda: next(values), first=lambda: mentions.append(1), check=lambda: checks.append(1)
    )
    assert (found, len(mentions), len(checks), len(pauses)) == ("here", 1, 2, 2)


def test_time_that_is_over_returns_what_was_last_found(pauses):
    assert polling.wait_until(lambda: None, seconds=0.25) is None
    assert pauses == pytest.approx([0.1, 0.1, 0.05])


def test_check_ends_the_wait_by_raising(pauses):
    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        polling.wait_until(lambda: False, check=check)
    assert pauses == []
