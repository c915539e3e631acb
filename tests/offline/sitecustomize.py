"""Keep Python from the network and write down what asked for it: on PYTHONPATH, it is imported at every start.

    REACHED=reached.txt PYTHONPATH=tests/offline python -m pipeline info F.h5

Every lookup of a name and every connection is a line in the file REACHED and fails. As the interpreter ends, packages
that talk to hubs are a line each, where they were imported.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from pathlib import Path
from typing import Any

REACHED = Path(os.environ["REACHED"])
ASKING = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
HUBS = ("huggingface_hub", "timm", "requests", "httpx")


def note(line: str) -> None:
    with REACHED.open("a") as file:
        file.write(line + "\n")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    local = arguments and isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX
    if event in ASKING and not local:
        note(f"{event} {arguments[-1] if isinstance(arguments[-1], tuple) else arguments[0]}")
        raise OSError(f"{event} is not allowed here")


sys.addaudithook(refuse)
atexit.register(lambda: [note(f"import {name}") for name in HUBS if name in sys.modules])
