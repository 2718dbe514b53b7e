"""The command line's commands, gathered."""

from __future__ import annotations

import typer

from safepoint.cli.ls import ls
from safepoint.cli.pin import pin, unpin
from safepoint.cli.save_now import save_now
from safepoint.cli.verify import verify

app = typer.Typer(
    name="safepoint",
    help="See what checkpoints there are, why they are kept, and whether they are sound.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(ls)
app.command()(pin)
app.command()(save_now)
app.command()(unpin)
app.command()(verify)
