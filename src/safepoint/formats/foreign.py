"""What a file is that is not read, told by how it begins, and what to do with it."""

from __future__ import annotations

HEAD_BYTES = 512
"""How much of a file has to be looked at."""
ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_LEGACY_AT = 2
TAR = (
    "a tar archive: torch's format from before 0.2, or none of torch's. Where you trust it, load it with torch and "
    "save it again"
)
_TAR = b"ustar"
_TAR_AT = 257
_PICKLE = b"\x80"


def is_legacy(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is of torch's older format: several pickles, and then storages."""
    return head.startswith(_PICKLE) and head[_LEGACY_AT:].startswith(_LEGACY)


def is_tar(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is a tar archive, of whichever age: its checksum holds."""
    import tarfile

    try:
        tarfile.TarInfo.frombuf(head[:HEAD_BYTES], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def told(head: bytes) -> str:
    """Say what a file that begins with ``head`` is, as it is not read, and what to do."""
    if is_legacy(head):
        return (
            "torch's format from before 1.6 (or _use_new_zipfile_serialization=False), which is not read here: where "
            "you trust it, load it with torch and save it again. 'safepoint scan' tells what it would import"
        )
    if head[_TAR_AT:].startswith(_TAR) or is_tar(head):
        return TAR
    if head.startswith(_PICKLE):
        return "a plain pickle, and no file of torch's: 'safepoint scan' tells what it would import"
    if not head:
        return "it is empty: never written, or the disk was full. Take another checkpoint"
    return "no checkpoint of any kind that is known here"
