"""The command line's commands, gathered."""

from __future__ import annotations

import typer

from safepoint.cli.best import best, latest
from safepoint.cli.diff import diff
from safepoint.cli.explain import explain
from safepoint.cli.export import export
from safepoint.cli.ls import ls
from safepoint.cli.pin import pin, unpin
from safepoint.cli.prune import prune
from safepoint.cli.report import report
from safepoint.cli.save_now import save_now
from safepoint.cli.scan import scan
from safepoint.cli.show import show
from safepoint.cli.verify import verify

app = typer.Typer(
    name="safepoint",
    help="See what checkpoints there are, why they are kept, and whether they are sound.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",  # whose paragraphs are filled anew, as wide as the terminal is
    pretty_exceptions_enable=False,
)
app.command()(best)
app.command()(diff)
app.command()(explain)
app.command()(export)
app.command()(latest)
app.command()(ls)
app.command()(pin)
app.command()(prune)
app.command()(report)
app.command()(save_now)
app.command()(scan)
app.command()(show)
app.command()(unpin)
app.command()(verify)
