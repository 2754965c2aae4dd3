"""A daemon in a Kubernetes cluster, reached through ``kubectl port-forward``.

The operator's own kubectl is used, with its login and its rights: whoever may forward a port to
the daemon's Service needs no shell in a pod. The child ends with the command, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from registry import NotFound, RegistryError

# As the chart labels its Services.
DAEMON = "app.kubernetes.io/component=daemon"
RELEASE = "app.kubernetes.io/instance"
LOOK_SECONDS = 30.0  # for the cluster to list its Services
FORWARD_SECONDS = 30.0  # for the forwarding to begin
END_SECONDS = 5.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Forward:
    """A port here that leads to the daemon, and the name in its certificate."""

    url: str
    server_name: str


@contextmanager
def forwarded(context: str | None, namespace: str | None, release: str | None) -> Iterator[Forward]:
    """A way to the daemon, as long as the block lasts.

    Raises `NotFound` where there is no kubectl, no such Service, or no way to it; `RegistryError`
    where several daemons are meant.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise NotFound(
            "kubectl is not on the PATH: --context, --namespace and --release need it; install it, "
            "or name the daemon's address with --url"
        )
    command = [kubectl, *(("--context", context) if context else ())]
    command += ("--namespace", namespace) if namespace else ()
    service = _service(command, release)
    name, port = service["metadata"]["name"], _port(service)
    with _child([*command, "port-forward", f"service/{name}", f":{port['port']}"]) as local:
        scheme = "https" if port.get("appProtocol") == "https" else "http"
        where = f"{name}.{service['metadata'].get('namespace', 'default')}.svc"
        yield Forward(f"{scheme}://127.0.0.1:{local}", where)


def _service(command: list[str], release: str | None) -> dict[str, Any]:
    selector = DAEMON + (f",{RELEASE}={release}" if release else "")
    asked = [*command, "get", "services", "--selector", selector, "--output", "json"]
    try:
        done = subprocess.run(
            asked, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=LOOK_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotFound(f"the cluster does not answer within {LOOK_SECONDS:g} s") from None
    if done.returncode:
        raise NotFound(f"kubectl cannot list the Services: {_last(done.stderr)}")
    try:
        found = json.loads(done.stdout)["items"]
    except (ValueError, KeyError, TypeError):
        raise RegistryError("kubectl answered with something that is no list") from None
    if not found:
        of = f" of release {release}" if release else ""
        raise NotFound(f"there is no daemon{of} in that namespace: see --namespace and --release")
    if len(found) > 1:
        names = ", ".join(sorted(s["metadata"]["labels"].get(RELEASE, "?") for s in found))
        raise RegistryError(f"there are several daemons: name one with --release ({names})")
    service: dict[str, Any] = found[0]
    return service


def _port(service: dict[str, Any]) -> dict[str, Any]:
    ports: list[dict[str, Any]] = service["spec"]["ports"]
    return next((port for port in ports if port.get("name") == "daemon"), ports[0])


@contextmanager
def _child(command: list[str]) -> Iterator[int]:
    """``kubectl port-forward`` as a child that ends with the block; the port that it opened."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )  # fmt: skip
    # A command that is ended by the system must not leave its child behind.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        port = _opened(process)
        # It says a line for every connection: left in the pipe, they would block it some day.
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=_drain, args=(stream,), daemon=True).start()
        yield port
    finally:
        signal.signal(signal.SIGTERM, before)
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _opened(process: subprocess.Popen[bytes]) -> int:
    """Wait for the line that names the local port."""
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + FORWARD_SECONDS
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        block = os.read(process.stdout.fileno(), 4096)
        if not block:
            process.wait(END_SECONDS)
            words = _last(process.stderr.read().decode(errors="replace"))
            raise NotFound(f"kubectl cannot forward a port to the daemon: {words}")
        said += block
        if match := re.search(rb"Forwarding from 127\.0\.0\.1:(\d+)", said):
            return int(match[1])
    raise NotFound(f"kubectl forwarded no port within {FORWARD_SECONDS:g} s")


def _drain(stream: IO[bytes]) -> None:
    with stream:
        while stream.read(4096):
            pass


def _die_with_parent() -> None:
    """In the child: be ended by the kernel when the command is gone, even if it was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"
