"""``safepoint export``: the tensors of a checkpoint in a file of another kind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from safepoint.cli import output
from safepoint.cli.bar import bar
from safepoint.errors import in_line, shortened
from safepoint.export import Dtype, Kind

if TYPE_CHECKING:
    from safepoint.export.job import Job

DAMAGED = 1
_SIGNALLED = 128
_MOST_NAMED = 5


def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", readable=False, help="A checkpoint of any kind.", show_default=False)
    ],
    *,
    to: Annotated[Kind, typer.Option("--to", help="What to make.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", readable=False, help="What to call it.", show_default="FILE's name, here"
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--keys", metavar="GLOB", help="Take what matches, and all below it; may be repeated."),
    ] = None,
    except_: Annotated[
        list[str] | None,
        typer.Option("--except", metavar="GLOB", help="Leave out what matches, and all below it; may be repeated."),
    ] = None,
    strip: Annotated[
        str, typer.Option("--strip", metavar="PREFIX", help="Take PREFIX from the names.", show_default=False)
    ] = "",
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Convert floating-point tensors, rounding to nearest even.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is called OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: safepoint.export/1.")] = False,
) -> None:
    """Write the tensors of FILE into another kind of file, in little memory however large they are.

    With --to safetensors, all tensors by their paths; of tied ones the first has its data there and the header names
    the others, as safetensors.torch.load_model and from_pretrained expect. Other values are left out.

    With --to torch, the state for torch.load: tensors as they lie on their storages, and plain values; containers of
    other classes become plain ones, and objects have to be left out.

    With --to weights, the weights of the model alone, for module.load_state_dict(torch.load(OUT)).

    GLOB is compared with paths as 'safepoint show' prints them. Nothing is unpickled. What FILE tells of its bytes
    (digests, or CRC-32) is compared with all that are read. OUT is there when all of it is durable, or not at all.

    EXIT STATUS: 0 if it is written; 1 if FILE is damaged; 2 if it cannot be read, or what is asked for not be done.
    """
    from safepoint.errors import DamagedCheckpointError
    from safepoint.export.elements import LARGEST
    from safepoint.export.job import Order, prepared

    if not os.path.exists(file):
        output.fail(f"{file}: no such file or directory; give a checkpoint.")
    target = out or Path(f"{file.resolve().name if file.is_dir() else file.stem}{to.extension}")
    order = Order(file, target, to, tuple(keys or ()), tuple(except_ or ()), strip, dtype, replace=force)
    try:
        overflowed = _written(job := prepared(order))
    except DamagedCheckpointError as error:
        _warn(str(error))
        raise typer.Exit(DAMAGED) from None
    for path in overflowed:
        became = f"{LARGEST[dtype]} at most" if dtype in LARGEST else "infinite"
        _warn(f"{path}: numbers beyond the range of {dtype} are {became} in {target}")
    if as_json:
        _print_document(job, overflowed)
    else:
        _print(job)


def _written(job: Job) -> tuple[str, ...]:
    """Write the file; a signal to end takes away what there is of it, as an error does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of what runs under nohup
            signal.signal(number, _end)
    with bar(in_line(f"writing {job.order.out}"), job.plan.size_bytes) as advance:
        return job.run(advance)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(_SIGNALLED + number)


def _warn(message: str) -> None:
    typer.echo(in_line(f"safepoint: {message}"), err=True)


def _print(job: Job) -> None:
    count = len(job.tensors) - len(job.tied)
    output.line(f"{job.order.out}: {count} tensor{'s' * (count != 1)}, {output.size(job.plan.size_bytes)}")
    if job.tied:
        output.line(f"tied, and there once: {_listed([f'{name} is {kept}' for name, kept in job.tied.items()])}")
    if job.left_out:
        output.line(f"left out, as they are no tensors: {_listed(list(job.left_out))}")


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return ", ".join(map(shortened, found[:_MOST_NAMED])) + more


def _print_document(job: Job, overflowed: tuple[str, ...]) -> None:
    from safepoint.cli.documents import Export, ExportedTensor

    order = job.order
    tensors = tuple(
        ExportedTensor(name, tensor.path, job.dtype_of(tensor), tensor.shape) for name, tensor in job.tensors.items()
    )
    output.document(
        Export(
            str(order.out),
            str(order.source),
            order.kind.value,
            job.plan.size_bytes,
            tensors,
            job.tied,
            job.left_out,
            overflowed,
        )
    )
