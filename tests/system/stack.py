"""The whole of driftd as an operator starts it: daemon and server processes on a real broker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
}


class Process:
    """One ``driftd`` command as a child, its output in a file."""

    def __init__(self, verb: str, config: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli", verb, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, seconds: float = 30.0) -> int:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(seconds)
        finally:
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()


def get(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and JSON of a GET (or of a POST, with a body); (0, None) where nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        data = answer.read()
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, data.decode()
    except OSError:
        return 0, None
    finally:
        connection.close()


class Stack:
    """A configuration in a folder, and what runs on it."""

    def __init__(self, folder: Path, http_port: int, server_port: int) -> None:
        self.folder = folder
        self.http, self.server = http_port, server_port
        self.path = folder / "driftd.yaml"
        self.processes: list[Process] = []

    def configure(self, source: dict[str, Any], **sections: Any) -> None:
        config = {
            "name": "table",
            "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
            "source": source,
            "fields": {"id": "id", "time": "time"},
            "dead_letters": {"kind": "file", "path": str(self.folder / "dead.jsonl")},
            "bootstrap": {"warmup_events": 400},
            "policy": {
                "rungs": ["recall", "head"],
                "settle_events": 300,
                "cooldown_events": 200,
            },
            # A table's model is so small that INT8 has nothing to shrink.
            "gate": {"size_ratio": 10.0, "parity_points": 10.0},
            "registry": {"path": str(self.folder / "registry")},
            "checkpoint": {"path": str(self.folder / "state"), "every_seconds": 1.0},
            "http": {"port": self.http},
            "server": {"port": self.server, "name": "table"},
            **sections,
        }
        self.path.write_text(yaml.safe_dump(config))

    def start(self, verb: str) -> Process:
        process = Process(verb, self.path, self.folder / f"{verb}.log")
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.child.poll() is None:
                process.child.kill()
                process.child.wait()

    def order(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another process: one of the operators' commands."""
        return subprocess.run(
            [sys.executable, "-m", "daemon.cli", *arguments, "-c", str(self.path)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=60,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        found = get(self.http, "/status")[1]
        return found if isinstance(found, dict) else {}

    def events(self) -> int:
        return int(self.status().get("events", 0))

    def letters(self) -> list[dict[str, Any]]:
        path = self.folder / "dead.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "registry" / "journal.jsonl"
        if not path.exists():
            return []
        from registry import open_registry

        found = open_registry(self.folder / "registry").journal.rows(kinds=[kind])
        return [dict(row.fields) for row in found]

    def wait(self, reached: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            for process in self.processes:
                code = process.child.poll()
                assert code in (None, 0), process.output()[-3000:]
            tail = "\n".join(p.output()[-1500:] for p in self.processes)
            assert time.monotonic() < deadline, f"it did not come about: {self.status()}\n{tail}"
            time.sleep(0.05)
