"""`driftd up`: two children kept up, taken down in order, and given up when it is no use."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.policy_config import HttpConfig
from daemon.up import check_ports
from registry import open_registry

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

# A supervisor of two little programs in the place of daemon and server, quick to lose patience.
LITTLE = textwrap.dedent(
    """
    import sys
    from daemon.up import Supervisor

    children = {{"daemon": [sys.executable, "-c", {daemon!r}],
                 "server": [sys.executable, "-c", {server!r}]}}
    sys.exit(Supervisor(children, first_pause=0.05, crashes=2, drain_seconds={drain}).run())
    """
)
STAYS = """
import signal, sys, time
def end(number, frame):
    print("ending on", signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
print("up")
while True:
    time.sleep(0.05)
"""
RELOADS = f"""
import signal
signal.signal(signal.SIGHUP, lambda number, frame: print("reloading"))
{STAYS}"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up")
time.sleep(600)
"""

Eventually = Callable[..., None]


class Up:
    """A supervisor in a process of its own, and what it has printed so far."""

    def __init__(self, *command: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            command, cwd=cwd, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def both_up(self) -> bool:
        return self.has("daemon | up") and self.has("server | up")

    def ended(self, seconds: float = 60.0) -> int:
        code = self.process.wait(seconds)
        self._thread.join(5)
        return code


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts a supervisor of two little programs; ends it with the test."""
    started: list[Up] = []

    def start(daemon: str, server: str, drain: float = 30.0) -> Up:
        program = LITTLE.format(daemon=daemon, server=server, drain=drain)
        up = Up(sys.executable, "-c", program, cwd=tmp_path)
        started.append(up)
        return up

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.terminate()
            up.ended()


def test_what_children_print_carries_their_name(little: Any, eventually: Eventually) -> None:
    up = little(STAYS, STAYS)
    eventually(up.both_up)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_in_order(
    little: Any, eventually: Eventually, number: signal.Signals
) -> None:
    up = little(STAYS, STAYS)
    eventually(up.both_up)
    up.process.send_signal(number)
    assert up.ended() == 0
    assert up.has(f"daemon | ending on {number.name}")
    assert up.has(f"server | ending on {number.name}")


def test_a_hang_up_is_passed_on_to_the_daemon(little: Any, eventually: Eventually) -> None:
    up = little(RELOADS, STAYS)  # the server would die of it
    eventually(up.both_up)
    up.process.send_signal(signal.SIGHUP)
    eventually(lambda: up.has("daemon | reloading"))
    up.process.terminate()
    assert up.ended() == 0


def test_with_json_there_is_nothing_but_json(tmp_path: Path, eventually: Eventually) -> None:
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "driftd.yaml").write_text(
        "source: {kind: file, path: events.jsonl}\nlog: {format: json}\n"
        "server: {port: 0, notice_seconds: 0}\nhttp: {port: 0}\n"
    )
    up = Up(sys.executable, "-m", "daemon.cli", "up", cwd=tmp_path)
    try:
        eventually(lambda: up.has("listening on http://127.0.0.1:"), 60)
        eventually(lambda: up.has("daemon has finished"), 60)
    finally:
        up.process.terminate()
        assert up.ended() == 0
    rows = [json.loads(line) for line in up.lines]
    assert {"driftd.up", "driftd.service"} <= {row["logger"] for row in rows}


def test_a_child_that_crashes_is_started_again_and_the_other_left_alone(
    little: Any, eventually: Eventually, tmp_path: Path
) -> None:
    mark = str(tmp_path / "crashed")
    crash_once = f"""
import os, sys
if not os.path.exists({mark!r}):
    open({mark!r}, "w").close()
    sys.exit("oh no")
{STAYS}"""
    up = little(STAYS, crash_once)
    eventually(up.both_up)
    assert up.has("server | oh no")
    assert up.has("server ended with code 1; starting it again in 0.05 s")
    assert sum("daemon | up" in line for line in up.lines) == 1


def test_a_killed_child_is_started_again(little: Any, eventually: Eventually) -> None:
    up = little(f"import os\nprint('pid', os.getpid())\n{STAYS}", STAYS)
    eventually(up.both_up)
    (line,) = (line for line in up.lines if "daemon | pid" in line)
    os.kill(int(line.split()[-1]), signal.SIGKILL)
    eventually(lambda: sum("daemon | up" in line for line in up.lines) == 2)
    assert up.has("daemon was killed by SIGKILL; starting it again")


def test_what_cannot_be_kept_up_ends_everything_with_1(little: Any) -> None:
    up = little(STAYS, "import sys, time; time.sleep(0.3); sys.exit(1)")
    assert up.ended() == 1
    assert up.has("server ended with code 1, 3 times in 10 minutes: giving up")


def test_a_wrong_configuration_is_not_tried_again(little: Any) -> None:
    up = little("import sys; sys.exit(2)", STAYS)
    assert up.ended() == 2
    assert up.has("daemon cannot use the configuration: giving up")
    assert not up.has("starting it again")


def test_a_daemon_that_has_read_all_leaves_the_server_serving(
    little: Any, eventually: Eventually
) -> None:
    up = little("pass", STAYS)
    eventually(lambda: up.has("daemon has finished") and up.has("server | up"))
    time.sleep(0.3)
    assert up.process.poll() is None
    up.process.terminate()
    assert up.ended() == 0


def test_when_all_have_finished_so_has_up(little: Any) -> None:
    assert little("pass", "pass").ended() == 0


def test_a_child_that_does_not_end_is_killed(little: Any, eventually: Eventually) -> None:
    up = little(DEAF, STAYS, drain=1.0)
    eventually(up.both_up)
    up.process.terminate()
    assert up.ended() == 1
    assert up.has("daemon does not end: killing it")


def test_a_second_signal_does_not_wait(little: Any, eventually: Eventually) -> None:
    up = little(DEAF, STAYS, drain=600.0)
    eventually(up.both_up)
    up.process.terminate()
    eventually(lambda: up.has("SIGTERM: ending daemon and server"))
    up.process.terminate()
    assert up.ended() == 1


# ------------------------------------------------------------------ the real children


def test_ports_in_use_are_found_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127.0.0.1:{port}: the port is in use.*http.port"):
            check_ports({"http": HttpConfig(port=port)})
        (tmp_path / "driftd.yaml").write_text(
            f"source: {{kind: file, path: x}}\nserver: {{port: {port}}}\nhttp: {{port: 0}}\n"
        )
        up = Up(sys.executable, "-m", "daemon.cli", "up", cwd=tmp_path)
        assert up.ended() == 1
    assert up.has("stop the process that uses it, or set server.port")
    assert not any("|" in line for line in up.lines)
    check_ports({"http": HttpConfig(port=0)})
    with pytest.raises(OSError, match=r"cannot listen on 192.0.2.1:9: .*: set http.port"):
        check_ports({"http": HttpConfig(host="192.0.2.1", port=9)})


def test_the_server_comes_up_with_its_registry_and_goes_with_its_supervisor(
    tmp_path: Path, eventually: Eventually
) -> None:
    """The daemon has an empty file to read, so that it needs no model and ends at once."""
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "driftd.yaml").write_text(
        "source: {kind: file, path: events.jsonl}\n"
        "server: {port: 0, notice_seconds: 0}\nhttp: {port: 0}\n"
    )
    up = Up(sys.executable, "-m", "daemon.cli", "up", cwd=tmp_path)
    try:
        eventually(lambda: up.has("listening on http://127.0.0.1:"), 60)
        assert open_registry(tmp_path / "driftd-registry").state().champion is None
        eventually(lambda: up.has("daemon has finished"), 60)
        (line,) = (line for line in up.lines if "listening on http://127.0.0.1:" in line)
        port = int(line.rsplit(":", 1)[1].split()[0])
        up.process.kill()  # without any chance to pass a signal on
        up.process.wait()

        def gone() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return True
            return False

        eventually(gone)
    finally:
        up.process.kill()
        up.process.wait()
