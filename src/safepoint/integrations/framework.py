"""What the shared body needs from the one or the other Lightning package, and how a save is led to Safepoint.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code as two packages whose classes know nothing of each
other; everything that differs between them is a value here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Sink = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Framework:
    """One of the two packages.

    ``misconfiguration`` is an error that both Safepoint's users and the framework's know to catch; ``info`` and
    ``warn`` speak on rank 0 only; ``checkpoint_io``, ``torch_io`` and ``async_io`` are the framework's plugin classes.
    """

    misconfiguration: type[Exception]
    info: Callable[[str], None]
    warn: Callable[[str], None]
    checkpoint_io: type[Any]
    torch_io: type[Any]
    async_io: type[Any]

    def takes_over(self, plugin: object) -> bool:
        """Tell whether Safepoint writes in place of ``plugin``: the framework's own do nothing that it does not."""
        if isinstance(plugin, self.async_io):
            return type(plugin.checkpoint_io) is self.torch_io
        return type(plugin) is self.torch_io

    @contextlib.contextmanager
    def redirected(self, strategy: Any, sink: Sink) -> Iterator[None]:
        """Hand what ``strategy`` is asked to save to ``sink``, on the rank that would have written it."""

        class Redirection(self.checkpoint_io):  # type: ignore[misc,name-defined]
            """Stand in for the configured plugin for the length of one save."""

            def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
                sink(checkpoint)

            def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
                return configured.load_checkpoint(*args, **kwargs)

            def remove_checkpoint(self, path: Any) -> None:
                configured.remove_checkpoint(path)

        configured = strategy.checkpoint_io
        strategy.checkpoint_io = Redirection()
        try:
            yield
        finally:
            strategy.checkpoint_io = configured
