"""Tensors of any checkpoint in a file of another kind: what may be asked for. The work is ``job``'s.

Imports nothing but these names, so that the command line is there at once.
"""

from __future__ import annotations

import enum


class Kind(enum.StrEnum):
    """What can be made: named tensors, a part of the state, or the weights of a model."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    WEIGHTS = "weights"

    @property
    def extension(self) -> str:
        """What the name of such a file ends in, where none is given."""
        return {"safetensors": ".safetensors", "torch": ".pt", "weights": ".weights.pt"}[self]


class Dtype(enum.StrEnum):
    """What floating-point tensors can be converted to, as torch calls it."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
