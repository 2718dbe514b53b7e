"""What a capture holds, and what ``torch.save`` writes of the same state, to be compared byte for byte."""

from __future__ import annotations

import io
import zipfile

import torch

from safepoint.capture import Capture


def _bytes(storage: torch.UntypedStorage) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()


def content(captured: Capture) -> tuple[bytes, list[bytes]]:
    """Return the pickle and the storages of a capture."""
    return captured.pickle, [_bytes(storage) for storage in captured.storages]


def torch_content(state: object) -> tuple[bytes, list[bytes]]:
    """Return the pickle and the storages that ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(file) as archive:
        count = sum(name.startswith("archive/data/") for name in archive.namelist())
        return archive.read("archive/data.pkl"), [archive.read(f"archive/data/{key}") for key in range(count)]
