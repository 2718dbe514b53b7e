"""``safepoint verify``: whether checkpoints are sound, and which tensor is damaged if not."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output
from safepoint.errors import in_line

if TYPE_CHECKING:
    from safepoint.cli.documents import Verify
    from safepoint.soundness import Finding, Verdict

DAMAGED = 1
INTERRUPTED = 130
_MOST_JOBS = 8
_UNSOUND: dict[Verdict, str] = {"damaged": "not sound", "not checkable": "cannot be checked"}


def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", readable=False, help="Checkpoints, or directories of them.", show_default=False),
    ],
    *,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", metavar="N", min=1, help="How many are read at once; if not given, one a processor, 8 at most."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: safepoint.verify/1.")] = False,
) -> None:
    """Read every byte of the checkpoints at each PATH, and below it, and tell whether they are sound.

    What that is worth depends on the format. Safepoint's: everything is compared with digests, or byte by byte.
    Lightning's, torch.save's and torch.distributed.checkpoint's: each record is compared with its CRC-32, unless torch
    was told to write none; what tells where the records are has no checksum. safetensors: the structure alone (header
    and sizes): the format has no checksums. The directory of a Hugging Face Trainer: each of its files. Nothing is
    unpickled. A bar on standard error, if that is a terminal, tells how far it has come.

    A file that begins as a checkpoint, or is called one (.ckpt, .safetensors, .distcp, .pt, .pth), and is not whole
    counts as damaged; any other file is no checkpoint, and so cannot be checked, like the torch.save format of before
    torch 1.6. What has several names is read once.

    EXIT STATUS: 0 if all are sound; 1 if one is damaged or cut off; 2 if none is, but one cannot be checked: it is not
    there, may not be read, or is no checkpoint, or a directory holds none.
    """
    found = [checkpoint for path in paths for checkpoint in _found(output.existing(path))]
    try:
        findings = _checked(found, jobs or min(os.cpu_count() or 1, _MOST_JOBS), is_silent=as_json)
    except KeyboardInterrupt:  # which an older typer ends with 1, that is, an answer
        raise typer.Exit(INTERRUPTED) from None
    if not findings:
        output.fail("no checkpoint is there any more: they were removed before they were read.")
    if as_json:
        output.document(_document(findings))
    elif summary := _summary(findings):
        output.line(summary)
    verdicts = {finding.verdict for finding in findings}
    if verdicts - {"sound"}:
        raise typer.Exit(DAMAGED if "damaged" in verdicts else output.UNUSABLE)


def _found(path: Path) -> Iterator[Path]:
    """Yield the checkpoints at ``path`` and below, or fail if a directory holds none."""
    from safepoint import search

    if not path.is_dir() or search.is_checkpoint(path, os.listdir(path)):
        yield path
        return
    found = search.found_below(path)
    if not any(found):
        output.fail(f"{path} holds no checkpoint; give one, or the directory of a run.")
    yield from sorted([*found.named_as_ours, *found.others])


def _checked(paths: list[Path], jobs: int, *, is_silent: bool) -> list[Finding]:
    """Check ``paths``, print each as soon as it and those before it are done, and return what was found."""
    from safepoint.checks import check_all, total_bytes
    from safepoint.cli.bar import bar

    findings: list[Finding] = []
    with bar("verifying", total_bytes(paths)) as shown, contextlib.closing(check_all(paths, jobs, shown)) as checks:
        for finding in filter(None, checks):  # None: a running job has removed it
            findings.append(finding)
            if not is_silent or finding.verdict == "not checkable":
                shown.say(partial(_print, finding))
    return findings


def _print(finding: Finding) -> None:
    for problem in finding.problems:
        if finding.verdict == "not checkable":
            typer.echo(in_line(f"safepoint: {finding.path}: {problem}"), err=True)
        else:
            output.line(f"{finding.path}: {problem}", "red")
    if finding.verdict == "sound":
        output.line(f"{finding.path}: {finding.worth}")


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    of_all = f"of {len(findings)} "
    unsound = [f"{counts[verdict]} {of_all}{words}" for verdict, words in _UNSOUND.items() if counts[verdict]]
    if not unsound:
        return f"all {len(findings)} sound" if len(findings) > 1 else "OK"
    return "" if len(findings) == counts["not checkable"] else ", ".join(unsound)


def _document(findings: Sequence[Finding]) -> Verify:
    from safepoint.cli.documents import Verified, Verify

    checkpoints = tuple(
        Verified(str(finding.path), finding.verdict, finding.check, finding.problems) for finding in findings
    )
    return Verify(checkpoints, all(finding.verdict == "sound" for finding in findings))
