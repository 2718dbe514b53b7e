"""What the shared body needs from the one or the other Lightning package, and how a save is led to Safepoint.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code as two packages whose classes know nothing of each
other; everything that differs between them is a value here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safepoint.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError
from safepoint.excluded import below, compare, put_in
from safepoint.integrations.exchange import WEIGHT_ENTRIES, Exchange, save_alone
from safepoint.integrations.resume import instead_of, is_checkpoint, local_path
from safepoint.loading import MapLocation, check_sound, read_state

Sink = Callable[[dict[str, Any]], None]


def interceptor(base: type[Any]) -> type[Any]:
    """Return a CheckpointIO, below the framework's class ``base``, that stands before the configured one."""

    class Interceptor(base):  # type: ignore[misc]
        """Verify what is loaded, and hand what is saved as ``awaited`` to ``sink`` while there is one.

        What is saved otherwise, because the user asked the trainer to, is durable when the call returns.
        ``is_plain``: what is configured does nothing that Safepoint does not; a plugin of the user's keeps its work.
        """

        def __init__(self, configured: Any) -> None:
            super().__init__()
            self.configured = configured
            self.is_plain = False
            self.strategy: Any = None
            self.info = self.warn = _say_nothing
            self.sink: Sink | None = None
            self.awaited: str | None = None
            self.exchange = Exchange()

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            if self.sink is not None and str(path) == self.awaited:  # and not what a signal's handler saves meanwhile
                self.sink(checkpoint)
            elif self.is_plain and storage_options is None and local_path(path) is not None:
                save_alone(checkpoint, Path(os.path.abspath(path)))
            else:
                self.configured.save_checkpoint(checkpoint, path, storage_options)

        def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
            return _load(self, path, *args, **kwargs)

        def remove_checkpoint(self, path: Any) -> None:
            self.configured.remove_checkpoint(path)

        def teardown(self) -> None:
            self.configured.teardown()

        def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
            # In another process there is nothing to intercept until a callback is set up there.
            return _itself, (self.configured,)

    return Interceptor


@dataclass(frozen=True, slots=True)
class Framework:
    """One of the two packages.

    ``misconfiguration`` is an error that both Safepoint's users and the framework's know to catch; ``info`` and
    ``warn`` speak on rank 0 only; ``interceptor`` is made from the framework's CheckpointIO; ``torch_io`` and
    ``async_io`` are its own plugins; ``callback`` is the root of its callbacks.
    """

    misconfiguration: type[Exception]
    info: Callable[[str], None]
    warn: Callable[[str], None]
    interceptor: type[Any]
    torch_io: type[Any]
    async_io: type[Any]
    callback: type[Any]

    def intercept(self, strategy: Any) -> Exchange:
        """Put an interceptor before the plugin of ``strategy``, unless another callback has done so.

        Returns what all callbacks that save through it share.
        """
        if not isinstance(strategy.checkpoint_io, self.interceptor):
            strategy.checkpoint_io = self.interceptor(strategy.checkpoint_io)
            strategy.checkpoint_io.is_plain = self._is_plain(strategy.checkpoint_io.configured)
            strategy.checkpoint_io.strategy = strategy
            strategy.checkpoint_io.info, strategy.checkpoint_io.warn = self.info, self.warn
        exchange: Exchange = strategy.checkpoint_io.exchange
        return exchange

    @contextlib.contextmanager
    def handed_to(self, strategy: Any, path: str, sink: Sink) -> Iterator[None]:
        """Hand what ``strategy`` is asked to save as ``path`` to ``sink``, on the rank that would have written it."""
        before = strategy.checkpoint_io
        before.sink, before.awaited = sink if before.is_plain else None, path
        try:
            yield
        finally:
            before.sink = None

    def _is_plain(self, plugin: Any) -> bool:
        if isinstance(plugin, self.async_io):
            plugin = plugin.checkpoint_io
        return type(plugin) is self.torch_io


def _load(io: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """Load what the interceptor ``io`` is asked for: a checkpoint of ours in one pass, unless a plugin has to do it.

    Raises:
        CheckpointError: it is damaged or cannot be read; the message names a sound one to load instead.

    """
    local = local_path(path)
    if local is not None:
        try:
            if is_checkpoint(local):
                if io.exchange.claims and io.strategy.is_global_zero:
                    io.exchange.claim(local)
                if io.is_plain:
                    return _load_ours(io, local, *args, **kwargs)
                check_sound(local)
        except (NotACheckpointError, DamagedCheckpointError) as error:
            raise type(error)(f"{error} {instead_of(local)}") from error
        except OSError as error:
            raise CheckpointError(f"{local} cannot be read: {error.strerror or error}. {instead_of(local)}") from error
    return io.configured.load_checkpoint(path, *args, **kwargs)


def _load_ours(io: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
    checkpoint, left_out = _load_plainly(path, *args, **kwargs)
    if left_out:
        _put_live_in(checkpoint, io, left_out, path)
    return checkpoint


def _put_live_in(checkpoint: dict[str, Any], io: Any, left_out: Mapping[str, str], path: Path) -> None:
    """Put the module's own tensors into the checkpoint where it was saved without them."""
    live = io.strategy.lightning_module.state_dict()
    for entry in WEIGHT_ENTRIES:
        if entry in checkpoint:
            put_in(checkpoint[entry], live, below(entry, left_out))
    told = compare(live, below(WEIGHT_ENTRIES[0], left_out))
    (io.info if told.is_whole else io.warn)(f"{path}: {told}.")


def _load_plainly(
    path: Path,
    map_location: MapLocation = "cpu",
    weights_only: bool | None = None,  # noqa: FBT001 - the signature is the framework's
) -> tuple[Any, Mapping[str, str]]:
    """Do what the framework's own plugin does, with its defaults, which leave the tensors on the CPU; verified."""
    return read_state(path, map_location, weights_only=weights_only)


def _say_nothing(_: str) -> None:
    pass


def _itself(plugin: Any) -> Any:
    return plugin
