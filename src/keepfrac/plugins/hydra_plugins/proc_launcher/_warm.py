"""Cells as copies of one process that has imported what they need; see `_server`."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO

from hydra_plugins.proc_launcher._process import die_with_parent

PATIENCE_SECONDS = 300.0
LONGEST = 2**16  # bytes of an answer
PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hydra_plugins.proc_launcher._server import main
main(int(sys.argv[2]))
"""


class Cold(Exception):
    """There is no such process here, or it has ended: cells are started as processes of their own."""


class Copy:
    """A cell's process; as far as the launcher needs it, what `subprocess.Popen` is of its own child."""

    def __init__(self, pid: int, server: "Server") -> None:
        self.pid, self._server = pid, server
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal where one ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid)
        return self.returncode


class Server:
    """The process that copies itself.

    Args:
        environment: of it and of all cells.

    Raises:
        Cold: it cannot be had here.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        if not (sys.platform == "linux" and hasattr(socket, "send_fds")):
            raise Cold
        self._codes: dict[int, int] = {}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = (json.dumps(sys.path), str(theirs.fileno()))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )
        self._ready, self._late = False, time.monotonic() + PATIENCE_SECONDS

    def is_ready(self) -> bool:
        """Returns whether it has imported what it has to.

        Raises:
            Cold: it cannot copy itself.
        """
        if not self._ready and self._is_talking(0):
            self._ready = self._answer(0)["ready"]
            if not self._ready:
                raise Cold
        if not self._ready and time.monotonic() > self._late:
            raise Cold
        return self._ready

    def start(self, words: list[str], output: IO[bytes], lock: int | None) -> Copy:
        """Starts a cell.

        Args:
            words: its command line, less the interpreter.
            output: where all that it writes goes.
            lock: what holds the lock of its cell; None: it takes its own.

        Raises:
            Cold: the server has ended.
        """
        descriptors = [output.fileno(), *([] if lock is None else [lock])]
        try:
            socket.send_fds(self._channel, [json.dumps(words).encode()], descriptors)
        except OSError as error:
            raise Cold from error
        while True:
            if "pid" in (answer := self._answer(PATIENCE_SECONDS)):
                return Copy(answer["pid"], self)
            self._note(answer)

    def code_of(self, pid: int) -> int | None:
        """Returns the exit code of a copy; None while it runs. With the server its copies have been killed."""
        try:
            while pid not in self._codes and self._is_talking(0):
                self._note(self._answer(0))
        except Cold:
            return self._codes.pop(pid, -signal.SIGKILL)
        return self._codes.pop(pid, None)

    def close(self) -> None:
        """Ends the server, and what it still runs."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _note(self, answer: Mapping[str, int]) -> None:
        self._codes[answer["ended"]] = answer["code"]

    def _answer(self, seconds: float) -> dict:
        if not self._is_talking(seconds):
            raise Cold
        with contextlib.suppress(OSError):
            if text := self._channel.recv(LONGEST):
                return json.loads(text)
        raise Cold

    def _is_talking(self, seconds: float) -> bool:
        if self._channel.fileno() < 0:
            raise Cold
        return bool(select.select([self._channel], [], [], seconds)[0])
