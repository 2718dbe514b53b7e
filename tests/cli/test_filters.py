"""Conditions on checkpoints, as a person writes them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from safepoint.errors import ConfigurationError
from safepoint.filters import Known, parsed

KNOWN: Known = {
    "name": ("epoch=1-step=2.ckpt", "runs/a/epoch=1-step=2.ckpt"),
    "format": ("safepoint",),
    "step": 2,
    "epoch": 1,
    "size": 1_500_000,
    "age": 2.5 * 86400,
    "val_loss": 0.25,
    "val/acc top-1": 0.9,
    "broken": math.nan,
    "endless": math.inf,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("val_loss<0.3", True),
        ("val_loss < 0.3", True),
        ("val_loss<0.25", False),
        ("val_loss<=0.25", True),
        ("val_loss>0.25", False),
        ("val_loss>=0.25", True),
        ("val_loss=0.25", True),
        ("val_loss==0.25", True),
        ("val_loss!=0.25", False),
        ("val_loss>-1e3", True),
        ("val/acc top-1>=.9", True),
        ("step=2", True),
        ("epoch>1", False),
        ("size>1MB", True),
        ("size>1.5 MB", False),
        ("size>1MiB", True),
        ("size<1G", True),
        ("size<2000kB", True),
        ("size=1500000", True),
        ("size=1500000B", True),
        ("age<3d", True),
        ("age>2d", True),
        ("age>=60h", True),
        ("age<1w", True),
        ("age<10 min", False),
        ("age<10m", False),
        ("age>10s", True),
        ("format=safepoint", True),
        ("format=safe*", True),
        ("format!=lightning", True),
        ("name=epoch=1*", True),
        ("name=*/a/*", True),
        ("name=step*", False),
        ("name!=*step=2*", False),
        ("name!=best*", True),
    ],
)
def test_filter_holds_by_its_operator(text: str, *, holds: bool) -> None:
    """Numbers are compared as such, sizes and ages in their units, texts by globs in any of their spellings."""
    assert parsed(text).holds(KNOWN) == holds


@pytest.mark.parametrize("text", ["loss<1", "loss>=1", "loss=1", "loss!=1"])
def test_filter_never_holds_of_what_is_not_known(text: str) -> None:
    """A checkpoint without the metric passes no filter that is about it."""
    assert not parsed(text).holds(KNOWN)


def test_filter_takes_nan_as_neither_less_nor_more() -> None:
    """NaN equals NaN, so that it can be asked for, and is beyond all comparison otherwise."""
    held = [
        text
        for text in ("<1", "<=1", ">1", ">=1", "=1", "!=1", "=nan", "!=nan")
        if parsed(f"broken{text}").holds(KNOWN)
    ]
    assert held == ["!=1", "=nan"]
    assert parsed("endless>1e300").holds(KNOWN)
    assert parsed("endless=inf").holds(KNOWN)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no filter: write a name"),
        ("val_loss", "is no filter: write a name"),
        ("<3", "is no filter: write a name"),
        ("val_loss<", "'' is no number; write it as in val_loss<0.3"),
        ("val_loss<small", "'small' is no number"),
        ("val_loss<<3", "'<3' is no number"),
        ("val_loss<3GB", "'3GB' is no number"),
        ("size>big", "write it as in size>1GB"),
        ("size>1parsec", "'1parsec' is no number"),
        ("size>GB", "'GB' is no number"),
        ("age<2y", "write it as in age<2d"),
        ("age<d", "write it as in age<2d"),
        ("name<b", "compare name by = or !="),
        ("format>=torch", "compare format by = or !="),
    ],
)
def test_wrong_filter_says_what_one_looks_like(text: str, told: str) -> None:
    """What cannot be a condition is refused, with an example of one."""
    with pytest.raises(ConfigurationError) as raised:
        parsed(text)
    assert told in str(raised.value)
    assert repr(text) in str(raised.value)


def test_filter_knows_the_metric_that_it_is_about() -> None:
    """So that one that no checkpoint has can be refused."""
    found: dict[str, Any] = {text: parsed(text).metric for text in ("val_loss<1", "step<1", "name=a", "age<1d")}
    assert found == {"val_loss<1": "val_loss", "step<1": None, "name=a": None, "age<1d": None}


def test_filter_takes_the_last_operator_for_a_metric_whose_name_holds_one() -> None:
    """Names of files are another thing: what they are compared with holds operators."""
    known = {"acc<=x": 0.5, "a=b": -1.0, "name": ("epoch=1-step=2.ckpt",)}
    held = [
        text
        for text in ("acc<=x>0.4", "acc<=x > 0.6", "a=b=-1", "a=b<=-1e0", "a=b>-1", "name=epoch=1*", "name!=epoch=2*")
        if parsed(text).holds(known)
    ]
    assert held == ["acc<=x>0.4", "a=b=-1", "a=b<=-1e0", "name=epoch=1*", "name!=epoch=2*"]
