"""A further name that is being made is not cleaned away by another writer in the same directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore, clean


@pytest.mark.parametrize("make", ["link", "symlink"])
def test_name_in_the_making_survives_a_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str) -> None:
    """Another run that begins just then removes nothing of it."""
    store = LocalStore(tmp_path)
    store.write("a.ckpt", [b"content"], 7, replace=False)
    rename = Disk.rename

    def cleaned_first(*paths: Any) -> None:
        assert clean(tmp_path) == []
        rename(*paths)

    monkeypatch.setattr(Disk, "rename", cleaned_first)
    getattr(store, make)("a.ckpt", "b.ckpt")
    assert (tmp_path / "b.ckpt").read_bytes() == b"content"
