"""Policies in words: what each means, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from safepoint import keep, keep_words
from safepoint.errors import ConfigurationError
from safepoint.keep import PreservationPolicy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("best:val_loss", keep.best("val_loss")),
        ("best:val_loss:3", keep.best("val_loss", 3)),
        ("best:val_loss:max", keep.best("val_loss", mode="max")),
        ("best:val_loss:3:max", keep.best("val_loss", 3, "max")),
        ("best:val_loss:3:min", keep.best("val_loss", 3)),
        ("best:val/loss", keep.best("val/loss")),
        ("best:val:loss:3", keep.best("val:loss", 3)),
        ("best:max", keep.best("max")),
        ("best:3", keep.best("3")),
        ("best:3:4", keep.best("3", 4)),
        ("latest", keep.latest()),
        ("latest:2", keep.latest(2)),
        ("every:epochs:10", keep.every(epochs=10)),
        ("every:steps:500", keep.every(steps=500)),
        ("within:days:2", keep.within(days=2)),
        ("within:hours:0.5", keep.within(hours=0.5)),
        ("within:minutes:5", keep.within(minutes=5)),
        ("within:seconds:5", keep.within(seconds=5)),
        ("within:gigabytes:50", keep.within(gigabytes=50)),
        ("pinned", keep.pinned()),
        ("all", keep.all()),
        ("best:val_loss:3,latest:2", keep.best("val_loss", 3) | keep.latest(2)),
        (" latest:2 , pinned ", keep.latest(2) | keep.pinned()),
        ("latest,pinned,all", keep.latest() | keep.pinned() | keep.all()),
    ],
)
def test_words_mean_policies(text: str, policy: PreservationPolicy) -> None:
    """Each form is one of ``keep``'s; a comma is its ``|``."""
    assert keep_words.parsed(text) == policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'': a word is missing."),
        ("latest:2,", "'': a word is missing."),
        ("lates:2", "'lates:2': 'lates' is none of these. Did you mean 'latest'?"),
        ("newest", "'newest': 'newest' is none of these. Give"),
        ("best", "'best': keep.best(''): give the name of a metric"),
        ("best:", "'best:': keep.best(''): give the name of a metric"),
        ("best:val_loss:0", "keep.best(n=0): give a whole number of 1 or more."),
        ("latest:0", "keep.latest(n=0)"),
        ("latest:two", "'two' is no whole number."),
        ("latest:2:3", "'latest:2:3': N belongs behind it."),
        ("latest:" + "9" * 5000, "is no whole number."),
        ("best:val_loss:" + "9" * 5000, "is no whole number."),
        ("every:10", "'every:10': UNIT:N belongs behind it."),
        ("every:batches:10", "'batches' is none of epochs, steps."),
        ("every:epochs:1.5", "'1.5' is no whole number."),
        ("within:2", "'within:2': UNIT:NUMBER belongs behind it."),
        ("within:weeks:2", "'weeks' is none of days, hours, minutes, seconds, gigabytes."),
        ("within:days:two", "'two' is no positive number."),
        ("within:days:nan", "'nan' is no positive number."),
        ("within:days:-1", "'-1' is no positive number."),
        ("pinned:1", "'pinned:1': nothing belongs behind it."),
        ("all:1", "'all:1': nothing belongs behind it."),
    ],
)
def test_words_that_mean_nothing_are_told(text: str, said: str) -> None:
    """The error names the word, what is wrong with it, and all forms there are."""
    with pytest.raises(ConfigurationError) as caught:
        keep_words.parsed(text)
    assert str(caught.value).startswith("--keep: ")
    assert said in str(caught.value)
    assert all(form in str(caught.value) for form in keep_words.FORMS)
