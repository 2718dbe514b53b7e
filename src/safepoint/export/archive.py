"""A file of ``torch.save``'s: a tree of tensors and plain values as a pickle, and the storages behind it.

Storages are taken as they are, so that views stay views and what is tied stays tied; a conversion changes the elements
and no place. What lies on several storages (a sharded tensor) gets one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from isal import isal_zlib

from safepoint import image, values
from safepoint.contents import Part, Tensor, contiguous
from safepoint.errors import ConfigurationError, shortened
from safepoint.export import pickled
from safepoint.export.elements import Buffer, Elements, Item, item
from safepoint.image import Entry


class Archive:
    """A file of ``tree``, which holds tensors and plain values alone, for ``torch.load``.

    Raises:
        ConfigurationError: torch cannot save a tensor of such a dtype.
        CheckpointError: elements cannot be read, or not be converted.

    """

    def __init__(self, tree: Any, dtype: str | None) -> None:
        self._dtype = dtype
        self._keys: dict[Any, int] = {}
        self._storages: list[Item] = []
        self._pickle = pickled.pickled(tree, self._place)
        layout = image.lay_out(len(self._pickle), [found.size_bytes for found in self._storages])
        self._entries = layout.entries[:-1]  # the last is the manifest of a checkpoint, which this is not
        self._data: dict[str, bytes | Item] = {layout.pickle.name: self._pickle}
        self._data |= {entry.name: content for entry, content in layout.constants}
        self._data |= {entry.name: found for entry, found in zip(layout.storages, self._storages, strict=True)}
        unsummed = dict.fromkeys(self._data, 0)
        self.size_bytes = self._entries[-1].end + len(image.directory_of(self._entries, unsummed))

    def pieces(self, elements: Elements) -> Iterator[Buffer]:
        """See ``elements.Plan``."""
        crcs: dict[str, int] = {}
        for entry in self._entries:
            yield image.local_header(entry)
            crc = 0
            for piece in self._content(entry, elements):
                crc = isal_zlib.crc32(piece, crc)
                yield piece
            yield image.descriptor(entry, crc)
            crcs[entry.name] = crc
        yield image.directory_of(self._entries, crcs)

    def _content(self, entry: Entry, elements: Elements) -> Iterator[Buffer]:
        found = self._data[entry.name]
        if isinstance(found, Item):
            yield from elements.pieces(found)
        else:
            yield found

    def _place(self, tensor: Tensor) -> pickled.Place:
        """Return where ``tensor`` lies in the file, and note the storage, if it is a new one."""
        wanted = item(tensor, self._dtype)
        if wanted.dtype not in pickled.TYPED and wanted.dtype not in pickled.UNTYPED:
            raise ConfigurationError(
                f"tensor {shortened(tensor.path)!r} is of {wanted.dtype}, which torch cannot load from a file: leave "
                "it out with --except."
            )
        storage, (offset, strides) = _as_it_lies(tensor)
        key = self._keys.setdefault((storage.parts, storage.shape, storage.dtype), len(self._storages))
        if key == len(self._storages):
            self._storages.append(Item(storage, wanted.dtype))
        kept = self._storages[key]
        length = storage.count if wanted.dtype in pickled.TYPED else kept.size_bytes
        return pickled.Place(key, length, wanted.dtype, offset, tensor.shape, strides)


def _as_it_lies(tensor: Tensor) -> tuple[Tensor, tuple[int, tuple[int, ...]]]:
    """Return the storage under ``tensor`` as a tensor, and the offset and strides of ``tensor`` on it."""
    if len(tensor.parts) != 1:
        return tensor, (0, contiguous(tensor.shape))
    (part,) = tensor.parts
    shape = (part.storage.size_bytes // values.item_bytes(tensor),)
    whole = Part((0,), shape, part.storage, 0, (1,))
    return replace(tensor, shape=shape, parts=(whole,)), (part.offset, part.strides)
