"""What ``exclude_frozen`` leaves out of a checkpoint, and what takes its place when the checkpoint is restored.

A frozen parameter comes from where the run took it (a pretrained backbone), and is there again before the run goes on.
The manifest names each that was left out, with its digest: a restore can tell whether what is there is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from safepoint import memory
from safepoint.checksums import digest
from safepoint.transfer import tensors_in, version


class Excluder:
    """Takes frozen parameters out of state dicts; each is digested once, for as long as its version is the same."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, int, str]] = {}

    def take_out(self, state: MutableMapping[str, Any], module: torch.nn.Module) -> dict[str, str]:
        """Take the frozen parameters of ``module`` out of its state dict; return their digests by their names."""
        named = module.named_parameters(remove_duplicate=False)
        frozen = {name: parameter for name, parameter in named if not parameter.requires_grad and name in state}
        for name in frozen:
            del state[name]
        return {name: self._digest(parameter) for name, parameter in frozen.items()}

    def _digest(self, parameter: torch.Tensor) -> str:
        known = self._known.get(id(parameter))
        if known is None or known[0] is not parameter or known[1] != version(parameter):
            known = self._known[id(parameter)] = (parameter, version(parameter), content_digest(parameter))
        return known[2]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a checkpoint has left out, beside what is live, by name.

    ``kept`` is live, and stays as it is; ``other`` are those of them whose content is another one; ``missing`` is not
    live.
    """

    kept: tuple[str, ...]
    other: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether everything that was left out is live as it was."""
        return not self.other and not self.missing

    def __str__(self) -> str:
        """Tell it."""
        told = [f"{len(self.kept)} frozen tensors are not in it, and stay as they are"]
        if self.other:
            told.append(
                f"{len(self.other)} of them (such as {self.other[0]!r}) are not what they were when it was saved: load "
                "the weights that they come from before you restore"
            )
        if self.missing:
            told.append(f"{len(self.missing)} more (such as {self.missing[0]!r}) are not in it, and not in the model")
        return "; ".join(told)


def compare(live: Mapping[str, Any], left_out: Mapping[str, str]) -> Comparison:
    """Compare what was left out, by name with its digests, with what is live."""
    kept = tuple(name for name in left_out if name in live)
    other = tuple(name for name in kept if content_digest(live[name]) != left_out[name])
    return Comparison(kept, other, tuple(name for name in left_out if name not in live))


def put_in(state: MutableMapping[str, Any], live: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """Put into ``state`` the tensors of ``live`` that were left out of it."""
    state.update({name: live[name] for name in left_out if name in live})


def below(prefix: str, left_out: Mapping[str, str]) -> dict[str, str]:
    """Return those of ``left_out`` whose paths begin with ``prefix``, by what follows it and a dot."""
    start = f"{prefix}."
    return {path.removeprefix(start): found for path, found in left_out.items() if path.startswith(start)}


def content_digest(tensor: Any) -> str:
    """Return the digest of a tensor's elements in order, wherever they lie; ``""`` for one of an unusual kind."""
    if not any(True for _ in tensors_in(tensor)) or tensor.is_quantized:
        return ""
    there = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return digest(memory.bytes_at(there.data_ptr(), there.nbytes)) if there.nbytes else digest(b"")
