"""Hold a checkpoint as a living run does, until standard input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from safepoint.stores.lease import Lease

if __name__ == "__main__":
    lease = Lease()
    assert lease.claim(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.read()
