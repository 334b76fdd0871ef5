"""An administrator's way into a guest: a program that runs a command there, as ssh would. See linux_site.py.

    python on_guest.py SOCKET WORDS...        runs the words in the guest behind the socket; its output and exit status
"""
from __future__ import annotations

import base64
import json
import shlex
import socket
import socketserver
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.guest import Guest


class Door:
    """Serves the socket for as long as it is open: each command goes to the guest by itself."""

    def __init__(self, guest: Guest, path: Path) -> None:
        lock = threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words = json.loads(self.rfile.readline())
                text = base64.b64encode(shlex.join(words).encode()).decode()
                with lock:
                    answer = dict(line.partition(" ")[::2] for line in guest.ask(f"run {text}"))
                self.wfile.write(json.dumps({name: answer.get(name, "") for name in ("STATUS", "OUT", "ERR")}).encode())

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.command = [sys.executable, __file__, str(path)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def main(path: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        link.sendall(json.dumps(words).encode() + b"\n")
        with link.makefile("rb") as answer:
            content = json.loads(answer.read())
    sys.stdout.buffer.write(base64.b64decode(content["OUT"]))
    sys.stderr.buffer.write(base64.b64decode(content["ERR"]))
    return int(content["STATUS"] or 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
