"""What a save cost, in figures and in words."""

from __future__ import annotations

from pathlib import Path

from safepoint.records import SaveStats

STATS = SaveStats(
    path=Path("run/a.ckpt"),
    step=3,
    size_bytes=2_000_000_000,
    written_bytes=1_000_000_000,
    waited_s=0.25,
    stalled_s=0.5,
    staged_s=0.5,
    written_s=0.9,
    committed_s=1.0,
)


def test_save_stats_tell_the_speed_of_what_was_written() -> None:
    """The time from staged to durable, and the bytes that were really written in it."""
    assert STATS.write_s == 0.5
    assert STATS.megabytes_per_s == 2000.0


def test_save_stats_tell_everything_in_a_line() -> None:
    """The line names the file, its size, what training waited for, and when which level was reached."""
    assert str(STATS) == (
        "a.ckpt is durable: 2000.0 MB; training held up 0.500 s, of which 0.250 s for a free image; staged after "
        "0.500 s, written after 0.900 s, durable after 1.000 s (2000 MB/s)"
    )
