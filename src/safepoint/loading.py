"""From a checkpoint to tensors: the file is read once, and every byte is verified on its way into a storage.

``torch.load`` builds the state, with its restricted unpickler unless the caller says otherwise, and is given storages
that are filled already in place of those that it would read: with ``mmap=True`` it reads none, and ``map_location`` may
exchange each. This file knows torch and files; it knows no live object.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from safepoint import memory, pickles, reader
from safepoint.background import Background
from safepoint.calls import Known
from safepoint.capture import STORAGE_TYPES
from safepoint.errors import (
    CheckpointError,
    ConfigurationError,
    DamagedCheckpointError,
    NotACheckpointError,
    cause,
    plain,
    shortened,
    warn,
)
from safepoint.image import Layout
from safepoint.reader import Opened

MapLocation = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None
Trust = Iterable[Callable[..., Any] | tuple[Callable[..., Any], str]]
KeyOf = Callable[[torch.UntypedStorage], int | None]
"""Which storage of the file, by its number, a storage that torch has mapped is."""
_OWN_WORDS = "WeightsUnpickler error: "
"""What torch puts in front of what its unpickler says, among advice of its own."""
_WORTH_A_THREAD_BYTES = 1 << 20
_WORTH_ASKING_BYTES = 1 << 28


def load(
    path: str | os.PathLike[str],
    *,
    map_location: MapLocation = None,
    mmap: bool = False,
    weights_only: bool = True,
    trust: Trust = (),
) -> Any:
    """Return what ``torch.load`` returns for ``path``, after verifying every byte of it.

    ``map_location``, ``mmap`` and ``weights_only`` mean what they mean there; ``trust`` lists the classes and functions
    that may be loaded besides PyTorch's own safe ones. Onto the CPU, or to where they were, the tensors are loaded and
    verified in one pass over the file.

    Raises:
        NotACheckpointError: Safepoint did not write the file.
        DamagedCheckpointError: the file does not match its digests; the message names the tensors.
        CheckpointError: the state needs a class that is neither safe nor in ``trust``, is none that PyTorch saves, or
            does not fit into memory.
        ConfigurationError: ``trust`` is no list of classes and functions.
        OSError: the file cannot be read.

    """
    try:
        with torch.serialization.safe_globals(checked_trust(trust)):
            state, left_out = read_state(Path(path), map_location, mmap=mmap, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        raise refusal(path, error, ", or weights_only=False to let it run any code") from error
    if left_out:
        first = shortened(next(iter(left_out)))
        warn(
            f"{path} was saved with exclude_frozen=True: {len(left_out)} frozen tensors (such as {first!r}) are not in "
            "it; take them from where the run took them, and load the rest with strict=False.",
            stacklevel=2,
        )
    return state


def checked_trust(trust: Trust) -> list[Any]:
    """Return the classes and functions of ``trust``.

    Raises:
        ConfigurationError: it is no list of classes and functions.

    """
    is_list = isinstance(trust, Iterable) and not isinstance(trust, str | type)
    trusted: list[Any] = list(trust) if is_list else [None]
    if not all(map(_can_be_trusted, trusted)):
        raise ConfigurationError(f"trust={trust!r}: give a list of classes and functions themselves, not their names.")
    return trusted


def _can_be_trusted(found: object) -> bool:
    """Tell whether it is a class or a function, or one with the name that it has in the file, as torch takes them."""
    match found:
        case (named, str()):
            return callable(named)
        case _:
            return callable(found) and hasattr(found, "__qualname__")


def read_state(
    path: Path, map_location: MapLocation = None, *, mmap: bool = False, weights_only: bool | None
) -> tuple[Any, Mapping[str, str]]:
    """Return what ``load`` does, and what was left out of it; what the unpickler refuses comes out as it is."""
    with _opened(path) as checkpoint:
        sizes = [blob.size_bytes for blob in checkpoint.manifest.storages]
        if not mmap and str(map_location) != "meta":
            check_room(
                sum(sizes) if map_location is None or str(map_location) == "cpu" else max(sizes, default=0), path
            )
        with _told(path, is_restricted=_is_restricted(weights_only)):
            state = _loaded(checkpoint, sizes, path, map_location, mmap=mmap, weights_only=weights_only)
        return state, checkpoint.manifest.excluded


def _loaded(
    checkpoint: Opened,
    sizes: list[int],
    path: Path,
    map_location: MapLocation,
    *,
    mmap: bool,
    weights_only: bool | None,
) -> Any:
    """Verify the file and build the state, in one pass where the tensors stay on the CPU."""
    if mmap or (map_location is not None and str(map_location) != "cpu"):
        _check(path, list(reader.problems(checkpoint)))
        if _is_restricted(weights_only):
            check_pickle(checkpoint, checkpoint.sound_pickle())
        with _sparse_checked(map_location):
            return torch.load(_source(checkpoint), map_location, mmap=mmap, weights_only=weights_only)
    storages = [fresh(size) for size in sizes]
    _check(path, fill(checkpoint, storages))
    if _is_restricted(weights_only):
        check_pickle(checkpoint, checkpoint.sound_pickle())
    return build(checkpoint, storages, map_location, weights_only=weights_only)


def check_room(needed_bytes: int, path: Path) -> None:
    """Raise a CheckpointError if there is less memory left: a file that is mostly a hole costs its writer nothing."""
    if needed_bytes > _WORTH_ASKING_BYTES and needed_bytes > (left_bytes := memory.available_bytes()):
        raise CheckpointError(
            f"{path} holds tensors of {needed_bytes / 1e9:.1f} GB, and there are {left_bytes / 1e9:.1f} GB of memory "
            "left: load it with mmap=True, or where there is more."
        )


def check_pickle(checkpoint: Opened, pickled: bytes | None) -> None:
    """Raise a CheckpointError if the structure of the state is none that PyTorch writes: see ``pickles``."""
    sizes = [blob.size_bytes for blob in checkpoint.manifest.storages]
    pickles.check(pickled or b"", sizes, _known())


@functools.cache
def _known() -> Known:
    bits = {str(dtype): dtype.itemsize * 8 for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    bits |= {"torch.quint4x2": 4, "torch.quint2x4": 2}
    kinds = {f"{kind.__module__}.{kind.__qualname__}": bits[str(dtype)] for dtype, kind in STORAGE_TYPES.items()}
    return Known({**bits, **kinds, "torch.storage.UntypedStorage": 8}, functools.partial(hasattr, torch.Tensor))


def _is_restricted(weights_only: bool | None) -> bool:  # noqa: FBT001 - torch's
    """Tell whether torch would unpickle with its restricted unpickler; ``None`` leaves that to the environment."""
    if weights_only is None:
        return os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "").lower() not in ("1", "y", "yes", "true")
    return weights_only


@contextlib.contextmanager
def _told(path: Path, *, is_restricted: bool) -> Iterator[None]:
    """Say in our own words what else goes wrong with a file that is sound, if it is its own fault."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(plain(str(error))) from None
    except DamagedCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{path} is sound, but {error}.") from None
    except Exception as error:
        if not is_restricted or isinstance(error, OSError):
            raise
        raise CheckpointError(f"{path} is sound, and its state cannot be built: {error}.") from cause(error)


@contextlib.contextmanager
def _sparse_checked(map_location: MapLocation = None) -> Iterator[None]:
    """Have torch look whether the indices of sparse tensors are within their shapes; on no device there are none."""
    enabled = str(map_location) != "meta"
    try:
        with torch.sparse.check_sparse_tensor_invariants(enabled):  # type: ignore[no-untyped-call]
            yield
    except BaseException:
        _let_torch_forget()
        raise


def _let_torch_forget() -> None:
    """Load something else: torch keeps the sparse tensors of a load that failed, to be looked at by the next.

    They may lie in a mapped file, which may be gone or shorter by then.
    """
    file = io.BytesIO()
    torch.save({}, file)
    with contextlib.suppress(Exception), torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def check_sound(path: Path) -> None:
    """Raise what ``load`` raises for a file that does not verify."""
    with _opened(path) as checkpoint:
        _check(path, list(reader.problems(checkpoint)))


def refusal(path: str | os.PathLike[str], error: pickle.UnpicklingError, otherwise: str = "") -> CheckpointError:
    """Return the error to raise where the restricted unpickler refuses ``path``; ``otherwise`` names another way."""
    told = str(error)
    _, _, own = told.partition(_OWN_WORDS)
    lines = [" ".join(line.split()) for line in (own or told).replace("\\t", " ").splitlines() if line.strip()]
    first = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    first = first if first.endswith((".", "!")) else f"{first}."
    return CheckpointError(
        f"{path} cannot be loaded safely: {first} If you know where the file comes from, "
        f"pass trust=[the classes and functions that it needs]{otherwise}."
    )


def structure(checkpoint: Opened) -> tuple[Any, KeyOf]:
    """Return the state with tensors that are mapped, unread and unverified, and what tells their storages apart.

    ``data.pkl`` and the index must have been found sound.
    """
    mapped = _Mapped(checkpoint.layout)

    def noted(storage: Any, _: str) -> Any:
        mapped.key_of(storage)
        return storage

    with _sparse_checked():
        try:
            return torch.load(_source(checkpoint), noted, mmap=True, weights_only=True), mapped.find
        except RuntimeError:  # as in build
            return torch.load(_source(checkpoint), "cpu", mmap=True, weights_only=True), lambda _: None


def fill(checkpoint: Opened, storages: Sequence[torch.UntypedStorage | None]) -> list[str]:
    """Read the file once, its storages into ``storages``, on whatever device; return the problems found on the way.

    What has none is read and verified all the same.
    """
    threads = Background("copy")

    def sink(key: int, offset: int, piece: memoryview) -> Callable[[], object]:
        storage = storages[key]
        if storage is None:
            return _nothing
        if len(piece) < _WORTH_A_THREAD_BYTES:
            _put(storage, offset, piece)
            return _nothing
        return threads.submit(_put, storage, offset, piece).result

    try:
        return list(reader.problems(checkpoint, sink))
    finally:
        threads.close()


def _put(storage: torch.UntypedStorage, offset: int, data: memoryview) -> None:
    found = torch.frombuffer(data, dtype=torch.uint8)
    if storage.device.type == "cpu":
        # In this thread only: torch would wait for threads that other work may keep from running.
        memory.copy(storage.data_ptr() + offset, found.data_ptr(), len(data))
    else:
        target = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        target[offset : offset + len(data)].copy_(found)


def _nothing() -> None:
    pass


def build(
    checkpoint: Opened,
    storages: Sequence[torch.UntypedStorage | None],
    map_location: MapLocation,
    *,
    weights_only: bool | None = True,
) -> Any:
    """Return the state on ``storages``, which hold the file's; without ``map_location`` each goes where it was.

    What has none, as nobody wants it, stays in the mapped file.
    """
    mapped = _Mapped(checkpoint.layout)

    def handed_out(storage: Any, location: str) -> Any:
        filled = storages[mapped.key_of(storage)]
        if filled is None:
            return storage
        if map_location is not None:
            return filled
        return torch.serialization.default_restore_location(filled, location)  # type: ignore[no-untyped-call]

    with _sparse_checked():
        try:
            return torch.load(_source(checkpoint), handed_out, mmap=True, weights_only=weights_only)
        except RuntimeError:
            # Tensors that torch rebuilds without a storage take no callable (and a later torch may map in another way);
            # the file has been found sound, and can be read once more.
            return torch.load(_source(checkpoint), map_location, weights_only=weights_only)


def fresh(size_bytes: int) -> torch.UntypedStorage:
    """Return a storage on the CPU that is still to be filled."""
    return torch.UntypedStorage(size_bytes, device="cpu")  # type: ignore[no-untyped-call]


def _source(checkpoint: Opened) -> str:
    """Return a path to the open file itself: its name may be given to another checkpoint at any time."""
    return f"/proc/self/fd/{checkpoint.file.fileno()}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Opened]:
    try:
        with reader.opened(path) as checkpoint:
            yield checkpoint
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{path}: {error}.") from None
    except OSError as error:
        error.filename = error.filename or str(path)  # what reads by a descriptor knows no name
        raise


def _check(path: Path, problems: list[str]) -> None:
    if problems:
        raise DamagedCheckpointError(f"{path} is damaged: {'; '.join(problems)}. Load another checkpoint of the run.")


class _Mapped:
    """Tell by its place in the mapped file which storage it is that torch hands over; the first is number 0."""

    def __init__(self, layout: Layout) -> None:
        self._sizes = [entry.size_bytes for entry in layout.storages]
        first = layout.storages[0].data_offset if layout.storages else 0
        self._keys = {entry.data_offset - first: key for key, entry in enumerate(layout.storages)}
        self._base: int | None = None

    def find(self, storage: torch.UntypedStorage) -> int | None:
        """Return the storage's number, ``None`` for one that is none of the file's."""
        return None if self._base is None else self._keys.get(storage.data_ptr() - self._base)

    def key_of(self, storage: torch.UntypedStorage) -> int:
        """Return the number of a storage that torch hands over; a RuntimeError if it does not lie where it must."""
        if self._base is None:
            self._base = storage.data_ptr()
        key = self.find(storage)
        if key is None or storage.nbytes() > self._sizes[key]:
            raise RuntimeError("torch has mapped a storage elsewhere than the checkpoint has it")
        return key
