"""The two checksums of every record: CRC-32, which zip readers test, and xxh3-128, which finds what CRC-32 misses.

Both release the GIL while they run, so that the training thread goes on.
"""

from __future__ import annotations

from isal import isal_zlib
from xxhash import xxh3_128, xxh3_128_hexdigest

Buffer = bytes | bytearray | memoryview


class Checksums:
    """The CRC-32 and the xxh3-128 digest of the bytes fed to ``update``."""

    def __init__(self) -> None:
        self.crc = 0
        self._xxh = xxh3_128()

    def update(self, data: Buffer) -> None:
        """Take in ``data``."""
        self.crc = isal_zlib.crc32(data, self.crc)
        self._xxh.update(data)

    @property
    def digest(self) -> str:
        """The xxh3-128 digest, as 32 hexadecimal digits."""
        return self._xxh.hexdigest()


def checksums(data: Buffer) -> Checksums:
    """Return the checksums of ``data``."""
    sums = Checksums()
    sums.update(data)
    return sums


def digest(data: Buffer) -> str:
    """Return the xxh3-128 digest of ``data`` alone."""
    return xxh3_128_hexdigest(data)
