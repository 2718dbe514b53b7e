"""File names from templates."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safepoint.errors import ConfigurationError, MissingMetricError
from safepoint.naming import TEMPORARY_PREFIX, check_contained, check_template, first_free, render

VALUES = {"epoch": 3, "step": 120, "val_loss": 0.98765, "val/acc": 0.5}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{epoch}-{step}", "epoch=3-step=120"),
        ("{epoch}-{val_loss:.2f}", "epoch=3-val_loss=0.99"),
        ("best-{val_loss:.1e}", "best-val_loss=9.9e-01"),
        ("{step:06d}", "step=000120"),
        ("plain", "plain"),
        ("sub/{epoch}", "sub/epoch=3"),
        ("{val/acc:.1f}", "val/acc=0.5"),
        ("{{literal}}-{epoch}", "{literal}-epoch=3"),
    ],
)
def test_render_fills_the_template(template: str, name: str) -> None:
    """Each field becomes its name and its value in the format asked for."""
    assert render(template, VALUES) == name


def test_render_leaves_the_names_out_where_told() -> None:
    """Without inserted names only the values stand."""
    assert render("{epoch}_{val_loss:.2f}", VALUES, auto_insert=False) == "3_0.99"


def test_render_uses_the_sign_for_equality_it_is_given() -> None:
    """The sign between name and value can be another one."""
    assert render("{epoch}", VALUES, equals="-") == "epoch-3"


def test_render_names_the_metrics_that_are_there() -> None:
    """A missing metric is named, together with those that are there and the way out."""
    with pytest.raises(MissingMetricError) as caught:
        render("{val_los:.2f}", VALUES)
    message = str(caught.value)
    assert "'val_los'" in message
    assert "'epoch', 'step', 'val/acc', 'val_loss'" in message
    assert "take {val_los} out of filename=" in message
    assert caught.value.metric == "val_los"


@pytest.mark.parametrize(
    "template",
    ["{epoch", "epoch}", "{}", "{:.2f}", "{epoch!r}", "{val_loss:{width}}", "", None, 3],
)
def test_check_template_refuses_what_is_malformed(template: Any) -> None:
    """A malformed template is refused before training, with the argument's name in the message."""
    with pytest.raises(ConfigurationError, match="filename="):
        check_template(template)


@pytest.mark.parametrize("spec", ["d", "s", ".1q"])
def test_render_refuses_a_format_that_does_not_fit_the_value(spec: str) -> None:
    """A format that the value cannot be written in is named."""
    with pytest.raises(ConfigurationError, match="cannot be written as"):
        render(f"{{val_loss:{spec}}}", VALUES)


OUTSIDE = ["/abs", "../up", "a/../../up", "a/..", "..", "", ".", "dir/", "nul\0byte", "./", f"{TEMPORARY_PREFIX}x"]


@pytest.mark.parametrize("name", [*OUTSIDE, f"sub/{TEMPORARY_PREFIX}x.ckpt"])
def test_check_contained_refuses_what_is_no_file_inside(name: str) -> None:
    """A name must stay inside the directory, name a file, and not look like a temporary."""
    with pytest.raises(ConfigurationError, match="filename="):
        check_contained(name)


@pytest.mark.parametrize(
    "template", ["/{epoch}", "../{epoch}", "{epoch}/../x", "{epoch}/", f"{TEMPORARY_PREFIX}{{epoch}}"]
)
def test_check_template_refuses_what_leaves_the_directory(template: str) -> None:
    """A template that leaves the directory whatever the values is refused before training."""
    with pytest.raises(ConfigurationError, match="filename="):
        check_template(template)


@pytest.mark.parametrize("template", ["{epoch:/>8}", "{epoch:/<3}", "{epoch:\0>2}"])
def test_render_checks_the_name_that_came_out(template: str) -> None:
    """A fill character in a format cannot lead out of the directory either."""
    check_template(template)
    with pytest.raises(ConfigurationError, match="filename="):
        render(template, {"epoch": 0}, auto_insert=False)


@given(st.text(alphabet="ab/.\0", max_size=8))
def test_check_contained_lets_nothing_out(name: str) -> None:
    """Whatever passes lies below the directory, is not the directory itself, and has no parent part in it."""
    try:
        check_contained(name)
    except ConfigurationError:
        return
    path = PurePosixPath("/root") / name
    assert path.is_relative_to("/root")
    assert ".." not in path.parts
    assert path != PurePosixPath("/root")


@given(st.text(max_size=20), st.floats(), st.booleans())
def test_render_raises_nothing_but_its_own_errors(template: str, value: float, auto_insert: bool) -> None:  # noqa: FBT001
    """No template and no value lead to another error than one that says what to do."""
    with contextlib.suppress(ConfigurationError):
        render(template, {"a": value, "epoch": 3}, auto_insert=auto_insert)


@pytest.mark.parametrize("value", [-1, 2**40])
def test_render_refuses_a_character_that_is_none(value: int) -> None:
    """A number that is no character is refused like any other format that does not fit."""
    with pytest.raises(ConfigurationError, match="cannot be written as"):
        render("{epoch:c}", {"epoch": value})


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        (set(), "a.ckpt"),
        ({"a.ckpt"}, "a-v1.ckpt"),
        ({"a.ckpt", "a-v1.ckpt", "a-v2.ckpt"}, "a-v3.ckpt"),
        ({"a.ckpt", "a-v2.ckpt"}, "a-v1.ckpt"),
    ],
)
def test_first_free_counts_up_to_a_name_that_is_free(taken: set[str], name: str) -> None:
    """The name itself if it is free, else the first version that is."""
    assert first_free("a", taken.__contains__) == name


def test_first_free_starts_and_ends_as_told() -> None:
    """The first version and the extension can be others."""
    assert first_free("a", {"a.x"}.__contains__, extension=".x", start=2) == "a-v2.x"


def test_naming_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file is there makes no difference: that is asked of the caller."""
    monkeypatch.chdir(tmp_path)
    Path("a.ckpt").touch()
    assert first_free("a", lambda _: False) == "a.ckpt"
