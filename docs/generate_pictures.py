"""Make the README's pictures of a terminal: real commands, on a run that is trained for them: ``make docs``.

Each command runs in a pseudo-terminal, as a person would run it, and what it prints becomes an SVG by rich.

Run: ``python docs/generate_pictures.py``
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 116, 40
COMMANDS = {
    "terminal": (
        "safepoint ls runs/digits",
        "safepoint explain runs/digits/epoch=7-step=184.ckpt",
        "safepoint diff --values runs/digits/epoch=10-step=253.ckpt runs/digits/epoch=11-step=276.ckpt",
    ),
}
TRAINING = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from safepoint import Checkpointer, keep, when

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(TensorDataset(images[:1437], labels[:1437]), 64, shuffle=True)
criterion = nn.CrossEntropyLoss()
with Checkpointer(
    "runs/digits",
    state={"model": model, "optimizer": optimizer, "loader": loader},
    save=when.every(epochs=1),
    keep=keep.best("val_loss", n=3) | keep.latest(2),
) as checkpointer:
    for epoch in range(12):
        for features, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), target)
            loss.backward()
            optimizer.step()
            checkpointer.step(train_loss=loss.item())
        model.eval()
        with torch.no_grad():
            checkpointer.epoch_end(val_loss=criterion(model(images[1437:]), labels[1437:]).item())
        model.train()
"""


def in_terminal(command: str, directory: Path) -> str:
    """Return what ``command`` prints in a terminal, its colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    running = subprocess.Popen(
        shlex.split(command), cwd=directory, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL
    )  # where bars go, which are gone when a command has ended
    os.close(theirs)
    printed = bytearray()
    try:
        while piece := os.read(ours, 1 << 16):
            printed += piece
    except OSError:  # what a terminal says once nobody has it any more
        pass
    os.close(ours)
    running.wait()
    return printed.decode().replace("\r\n", "\n")


def picture(commands: tuple[str, ...], directory: Path) -> str:
    """Return an SVG of a terminal in which ``commands`` were run."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for command in commands:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(in_terminal(command, directory).rstrip("\n")))
    made = console.export_svg(title="safepoint", unique_id="safepoint")
    return re.sub(r"@font-face \{.*?\}\s*", "", made, flags=re.DOTALL)  # a picture fetches nothing


def main() -> None:
    """Train, and make every picture."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-c", TRAINING], cwd=place, check=True)
        for name, commands in COMMANDS.items():
            (PICTURES / f"{name}.svg").write_text(picture(commands, Path(place)))


if __name__ == "__main__":
    main()
