"""Real file systems of every kind that matters, in small image files or in memory; only root can mount them."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from safepoint.stores.local import LocalStore

IMAGE_MIB = {"ext4": 64, "xfs": 320, "btrfs": 256}
"""How small each may be; the images are sparse."""
JOURNALED = tuple(IMAGE_MIB)
SHARING = ("xfs", "btrfs")
KINDS = (*IMAGE_MIB, "tmpfs", "overlay")
_FORCE = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}


@contextlib.contextmanager
def mounted(kind: str, directory: Path, *, options: str = "size=64m", make: Sequence[str] = ()) -> Iterator[Path]:
    """Make a file system of ``kind`` below ``directory`` and mount it for a while; skip the test if that is refused.

    ``options`` are those that a tmpfs is mounted with, ``make`` those that any other is made with.
    """
    place = directory / "mounted"
    place.mkdir(parents=True)
    if kind in IMAGE_MIB:
        _mount("-o", "loop", _image(kind, directory, make), place)
    elif kind == "tmpfs":
        _mount("-t", "tmpfs", "-o", options, "tmpfs", place)
    else:
        layers = [directory / layer for layer in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        _mount("-t", "overlay", "-o", "lowerdir={},upperdir={},workdir={}".format(*layers), "overlay", place)
    with _unmounted(place):
        yield place


def unmount(place: Path) -> None:
    """Unmount a file system, living runs on it or not: each holds its newest checkpoint, and lets go of it here."""
    gc.collect()
    for found in gc.get_objects():
        if issubclass(type(found), LocalStore):  # isinstance would ask objects that answer with warnings
            found.let_go()
    subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def after_power_cut(kind: str, directory: Path, look: Path) -> Iterator[Path]:
    """Mount, at ``look``, what the disk below ``directory`` would hold if the power failed now.

    The image file is what has reached the device; what the kernel only remembers is not in it. The original has to be
    unmounted first: a file system does not come twice.
    """
    look.mkdir(parents=True)
    cut = _cut(kind, directory)
    subprocess.run(["umount", directory / "mounted"], check=True)
    _mount("-o", "loop", cut, look)
    try:
        with _unmounted(look):
            yield look
    finally:
        cut.unlink()
        _mount("-o", "loop", directory / f"{kind}.img", directory / "mounted")


def _cut(kind: str, directory: Path) -> Path:
    cut = directory / f"{kind}.cut"
    subprocess.run(["cp", "--sparse=always", directory / f"{kind}.img", cut], check=True)
    return cut


def _image(kind: str, directory: Path, options: Sequence[str]) -> Path:
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if make is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image = directory / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB[kind] << 20)
    subprocess.run([make, "-q", _FORCE[kind], *options, image], check=True, capture_output=True)
    return image


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@contextlib.contextmanager
def _unmounted(place: Path) -> Iterator[None]:
    try:
        yield
    finally:
        unmount(place)
