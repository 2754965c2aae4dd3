"""Daemon and server on one machine: two child processes, kept up and taken down together.

A crash of one never touches the other; the one that crashed is started again after a pause that
doubles. What cannot be kept up ends everything with an exit code that says so, as a process
manager above expects.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Protocol, TextIO

from daemon.logs import as_json

log = logging.getLogger("driftd.up")

CONFIG_PROBLEM = 2  # the exit code of a child whose configuration is wrong: no use in trying again
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a crashed child is started again
CRASHES, WITHIN_SECONDS = 5, 600.0  # more crashes than that in so long: give up
DRAIN_SECONDS = 40.0  # for the children to end in order, the server's notice and drain included
LOOK_SECONDS = 0.1
RELOADS = "daemon"  # the child that reads its configuration again on SIGHUP


class Address(Protocol):
    """A section with a host and a port."""

    @property
    def host(self) -> str:
        """The address to bind."""

    @property
    def port(self) -> int:
        """The port to bind; 0: any."""


class Terminal:
    """The terminal that the process was started on, if any: closing it sends SIGHUP, too."""

    def __init__(self) -> None:
        # Whoever ignores SIGHUP, as under nohup, has been told to outlive it.
        self._ours = _opens() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN

    @property
    def closed(self) -> bool:
        """Whether it is gone, and nobody there to run on for."""
        return self._ours and not _opens()


def _opens() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def check_ports(addresses: Mapping[str, Address]) -> None:
    """Find out about a port in use before anything is started.

    Raises:
        OSError: naming the port, and the setting that moves it.
    """
    for section, address in addresses.items():
        if not address.port:
            continue
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, address.port))
            except OSError as error:
                what = (
                    "the port is in use: stop the process that uses it, or set"
                    if error.errno == errno.EADDRINUSE
                    else f"{error.strerror}: set"
                )
                where = f"{address.host}:{address.port}"
                raise OSError(f"cannot listen on {where}: {what} {section}.port") from None


def commands(config: Path) -> dict[str, list[str]]:
    """The command lines of the two children."""
    driftd = [sys.executable, "-m", "daemon.cli"]
    options = ["-c", str(config), "--supervisor", str(os.getpid())]
    return {"daemon": [*driftd, "run", *options], "server": [*driftd, "serve", *options]}


@dataclass(slots=True)
class Child:
    """One of the processes, and how it has fared."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    crashes: deque[float] = field(default_factory=deque)
    again_at: float = 0.0
    done: bool = False


class Supervisor:
    """Keeps children up until a signal, or until one of them cannot be kept up.

    commands: by the name that prefixes what the child prints. say: told what happens to the
    children, which then print to where this process does, and without a prefix. Times are settable
    for tests.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        output: TextIO | None = None,
        say: Callable[[str], None] | None = None,
        first_pause: float = FIRST_PAUSE,
        crashes: int = CRASHES,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._children = [Child(name, command) for name, command in commands.items()]
        self._width = max(len(child.name) for child in self._children)
        self._output = output or sys.stderr
        self._say: Callable[[str], None] = say or self._tell
        self._copied = say is None
        self._lock = threading.Lock()
        self._first_pause = first_pause
        self._crashes = crashes
        self._drain_seconds = drain_seconds
        self._signals: deque[int] = deque()
        self._terminal = Terminal()

    def run(self) -> int:
        """Start the children and keep them up; the exit code of `driftd up`."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            return self._keep_up()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _keep_up(self) -> int:
        while not self._signals:
            for child in self._children:
                code = self._look_after(child)
                if code is not None:
                    self._take_down(signal.SIGTERM)
                    return code
            if all(child.done for child in self._children):
                return 0
            time.sleep(LOOK_SECONDS)
        number = self._signals.popleft()
        names = " and ".join(child.name for child in self._children)
        self._say(f"{signal.Signals(number).name}: ending {names}")
        return 0 if self._take_down(number) else 1

    def _look_after(self, child: Child) -> int | None:
        """Start a child, or start it again; an exit code if it is time to give up."""
        now = time.monotonic()
        if child.done or now < child.again_at:
            return None
        if child.process is None:
            self._start(child)
            return None
        code = child.process.poll()
        if code is None:
            return None
        self._collect(child)
        if code == 0:
            self._say(f"{child.name} has finished")
            child.done = True
            return None
        if code == CONFIG_PROBLEM:
            self._say(f"{child.name} cannot use the configuration: giving up")
            return CONFIG_PROBLEM
        child.crashes.append(now)
        while now - child.crashes[0] > WITHIN_SECONDS:
            child.crashes.popleft()
        if len(child.crashes) > self._crashes:
            self._say(
                f"{child.name} {_ending(code)}, {len(child.crashes)} times in"
                f" {WITHIN_SECONDS / 60:.0f} minutes: giving up"
            )
            return 1
        pause = min(LONGEST_PAUSE, self._first_pause * 2 ** (len(child.crashes) - 1))
        self._say(f"{child.name} {_ending(code)}; starting it again in {pause:g} s")
        child.again_at = now + pause
        return None

    def _start(self, child: Child) -> None:
        # A process group of its own: Ctrl-C reaches the children through us, once, and in order.
        child.process = subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._copied else None,
            stderr=subprocess.STDOUT if self._copied else None,
            process_group=0,
        )
        if child.process.stdout is None:
            return
        child.reader = threading.Thread(
            target=self._copy, args=(child.name, child.process.stdout), daemon=True
        )
        child.reader.start()

    def _collect(self, child: Child) -> None:
        if child.reader is not None:
            child.reader.join(1.0)  # a grandchild may hold the pipe open
        child.process = child.reader = None

    def _take_down(self, number: int) -> bool:
        """Pass the signal on and wait; whether all ended by themselves and well."""
        running = [child for child in self._children if child.process is not None]
        for child in running:
            self._send(child, number)
        deadline = time.monotonic() + self._drain_seconds
        well = True
        for child in running:
            process = child.process
            assert process is not None
            while process.poll() is None:
                if self._signals:  # asked twice: no more waiting
                    self._signals.clear()
                    deadline = 0.0
                if time.monotonic() >= deadline:
                    self._say(f"{child.name} does not end: killing it")
                    self._send(child, signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(LOOK_SECONDS / 2)
            well = well and process.returncode == 0
            self._collect(child)
        return well

    def _send(self, child: Child, number: int) -> None:
        if child.process is not None and child.process.poll() is None:
            child.process.send_signal(number)

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._write(name, line.decode(errors="replace").rstrip("\n"))

    def _tell(self, message: str) -> None:
        if as_json():
            log.info("%s", message)
        else:
            self._write("up", message)

    def _write(self, name: str, line: str) -> None:
        with self._lock:
            # A line of JSON says itself which logger it is from; a name before it would spoil it.
            self._output.write(line if as_json() else f"{name:<{self._width}} | {line}")
            self._output.write("\n")
            self._output.flush()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and not self._terminal.closed:
            for child in self._children:
                if child.name == RELOADS:
                    self._send(child, number)
            return
        self._signals.append(signal.SIGTERM if number == signal.SIGHUP else number)


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
