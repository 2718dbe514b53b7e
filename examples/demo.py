"""What `make demo` shows: two trainings on real data, what was kept and why, and a run that survives SIGKILL.

Usage: python examples/demo.py [DIRECTORY], by default runs/demo
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

HERE = Path(__file__).parent
console = Console(highlight=False)


def main(root: Path) -> None:
    """Run the three acts, each in its own directory below ``root``."""
    started = time.perf_counter()
    act("1. Lightning: the import line is the only change", "keep the two best by val_loss, and the last")
    run("digits_lightning.py", root / "lightning", 8)
    listing(root / "lightning")

    act("2. A plain PyTorch loop", "save every 20 steps and every epoch; keep the two best by val_loss, and the latest")
    run("digits_loop.py", root / "loop", 5)
    listing(root / "loop")

    act("3. SIGKILL in the middle of a run, then the same command again", "no warning, no cleanup, no luck needed")
    killed(root / "killed", 12)
    listing(root / "killed", removed=False)
    run("digits_loop.py", root / "killed", 12)
    listing(root / "killed", removed=False)
    console.print(f"Done in {time.perf_counter() - started:.0f} s. The checkpoints are in {root}", soft_wrap=True)


def act(title: str, subtitle: str) -> None:
    """Print a heading."""
    console.print()
    console.print(Rule(f"[bold]{title}[/bold]", align="left"))
    console.print(f"[dim]{subtitle}[/dim]\n")


def command(script: str, directory: Path, epochs: int) -> list[str]:
    """Return the command line of an example."""
    return [sys.executable, "-W", "ignore", str(HERE / script), str(directory), str(epochs)]


def run(script: str, directory: Path, epochs: int) -> None:
    """Run an example to its end, without what Lightning says of the machine."""
    uninteresting = ("GPU available", "TPU available", "💡", "Seed set", "HPU available", "Tip:", "litlogger")
    process = subprocess.Popen(
        command(script, directory, epochs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout or ():
        if line.strip() and not line.lstrip().startswith(("/", "`isinstance", *uninteresting)):
            console.print(line.rstrip(), markup=False, soft_wrap=True)
    if process.wait() != 0:
        sys.exit(f"{script} ended with exit code {process.returncode}")


def killed(directory: Path, epochs: int) -> None:
    """Start the plain loop and kill it with SIGKILL at a random moment soon after its third epoch."""
    process = subprocess.Popen(command("digits_loop.py", directory, epochs), stdout=subprocess.PIPE, text=True)
    lines = iter(process.stdout or ())
    for _ in range(3):
        console.print(next(lines).rstrip(), markup=False)
    time.sleep(random.uniform(0.01, 0.2))
    process.kill()
    process.wait()
    console.print(f"[red]killed[/red] (exit code {process.returncode}); what is there now:\n")


def listing(directory: Path, *, removed: bool = True) -> None:
    """Show what the command line says of a directory, and verify it."""
    console.print()
    for arguments in (["ls", *(["--removed"] if removed else [])], ["verify"]):
        shown = " ".join(["safepoint", *arguments, directory.name])
        console.print(f"[bold]$ {shown}[/bold]")
        safepoint = [sys.executable, "-c", "from safepoint.cli import main; main()"]
        subprocess.run([*safepoint, *arguments, directory.name], cwd=directory.parent, check=True)
    console.print()


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo").resolve()
    for name in ("lightning", "loop", "killed"):
        shutil.rmtree(chosen / name, ignore_errors=True)
    main(chosen)
