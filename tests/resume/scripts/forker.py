"""Import everything once, then fork for each line ``{"call": "module:function", ...}``: starts in milliseconds.

Answers with the child's number, and with its exit code once it has ended. A child is a process with a session, signals
and an end of its own; it speaks on standard error only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import warnings
from typing import Any, NoReturn

import exact  # noqa: F401 - what the children need is loaded before they are forked
import numpy as np  # noqa: F401
import supervised  # noqa: F401
import torch
import torch._dynamo  # which every optimizer asks for

EXPECTED = (
    "'set_vital' is deprecated",  # torchdata asks torch for it
    r"Detected call of `lr_scheduler.step\(\)` before",  # where a life begins behind the last step of an epoch
    "checkpoints of 0.00 GB do not fit into the host memory",  # one case is made for this
)
"""Warnings, as the beginnings of regular expressions."""


def child(call: str, arguments: dict[str, Any]) -> NoReturn:
    """Be the program that ``call`` names."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    code = 1
    try:
        module, function = call.split(":")
        warnings.simplefilter("error")
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        getattr(importlib.import_module(module), function)(**arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork as told."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        arguments = json.loads(line)
        assert threading.active_count() == 1
        pid = os.fork()
        if not pid:
            child(arguments.pop("call"), arguments)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
