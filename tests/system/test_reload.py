"""SIGHUP and SIGTERM on a real daemon: what changes, what needs a restart, and the time to end."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.config import Config
from daemon.reload import FIXED, LIVE, changes
from tests.system.stack import ENVIRONMENT, ROOT, Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")


def config(**sections: Any) -> Config:
    source = {"kind": "kafka", "bootstrap_servers": "a:1", "topic": "t"}
    return Config.model_validate({"source": source, **sections})


def test_what_differs_is_named_setting_by_setting() -> None:
    old = config(gate={"alpha": 0.05}, server={"workers": 1})
    new = config(
        gate={"alpha": 0.01, "canary": {"steps": [5, 50]}},
        policy={"min_labelled_by_rung": {"head": 7}},
        memory={"recent": 123},
        server={"workers": 2},
    )
    found = {change.key: change for change in changes(old, new)}
    assert list(found) == [
        "gate.alpha",
        "gate.canary.steps",
        "memory.recent",
        "policy.min_labelled_by_rung",
    ]
    assert (found["gate.alpha"].old, found["gate.alpha"].new) == (0.05, 0.01)
    assert found["policy.min_labelled_by_rung"].new == {"head": 7}
    assert [key for key, change in found.items() if not change.live] == ["memory.recent"]
    assert changes(old, old) == []


def test_secrets_are_compared_and_never_shown() -> None:
    def with_password(text: str) -> Config:
        source = {
            "kind": "kafka",
            "bootstrap_servers": "a:1",
            "topic": "t",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "u",
            "sasl_password": text,
        }
        return Config.model_validate({"source": source})

    (change,) = changes(with_password("hunter2"), with_password("hunter3"))
    assert (change.key, change.live) == ("source.sasl_password", False)
    assert "hunter" not in str(change)


def test_the_names_of_live_settings_exist() -> None:
    for name in (*LIVE, *FIXED):
        here: Any = config()
        for step in name.split("."):
            here = getattr(here, step)


# ------------------------------------------------------------------ a real daemon


@pytest.fixture
def stack(tmp_path: Path, table: Callable[..., list[bytes]]) -> Iterator[Stack]:
    from examples.demo.broker import free_port

    made = Stack(tmp_path, free_port(), free_port())
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"\n".join(table(100, seed=1)) + b"\n")
    made.configure({"kind": "file", "path": str(events), "follow": True})
    yield made
    for process in made.processes:
        if process.child.poll() is None:
            process.child.kill()
            process.child.wait()


def edit(stack: Stack, **sections: Any) -> None:
    found = yaml.safe_load(stack.path.read_text())
    for name, values in sections.items():
        found[name] = {**found.get(name, {}), **values}
    stack.path.write_text(yaml.safe_dump(found))


def test_a_reload_takes_up_what_may_change_and_names_the_rest(stack: Stack) -> None:
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == 100)
    edit(
        stack,
        bootstrap={"warmup_events": 80},
        gate={"alpha": 0.01},
        memory={"recent": 777},
        log={"level": "debug"},
    )
    daemon.child.send_signal(signal.SIGHUP)
    stack.wait(lambda: stack.rows("reloaded"))
    (row,) = stack.rows("reloaded")
    assert row["changed"] == {
        "bootstrap.warmup_events": [400, 80],
        "gate.alpha": [0.05, 0.01],
        "log.level": ["info", "debug"],
    }
    assert row["needs_restart"] == ["memory.recent"]
    said = daemon.output()
    assert "reloaded: gate.alpha: 0.05 -> 0.01" in said
    assert "memory.recent changed in the file, and needs a restart" in said
    # It goes by the new value: 100 events are enough for the first version now.
    stack.wait(lambda: stack.rows("refresh-started"), 120)
    daemon.child.send_signal(signal.SIGHUP)
    stack.wait(lambda: len(stack.rows("reloaded")) == 2)
    assert stack.rows("reloaded")[-1]["changed"] == {}
    assert daemon.stop() == 0


def test_a_broken_file_changes_nothing_and_is_said_so(stack: Stack) -> None:
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == 100)
    whole = stack.path.read_text()
    stack.path.write_text(whole + "gate: {alpha: 7}\n")
    daemon.child.send_signal(signal.SIGHUP)
    stack.wait(lambda: stack.rows("reload-refused"))
    assert "the configuration stays as it was" in daemon.output()
    assert any("gate" in problem for problem in stack.rows("reload-refused")[0]["problems"])
    # What may change must go with what may not: features are fixed, slices of them are not.
    stack.path.write_text(whole)
    edit(stack, model={"features": [{"name": "a"}, {"name": "c"}]}, gate={"slices": ["c"]})
    daemon.child.send_signal(signal.SIGHUP)
    stack.wait(lambda: len(stack.rows("reload-refused")) == 2)
    stack.path.unlink()
    daemon.child.send_signal(signal.SIGHUP)
    stack.wait(lambda: len(stack.rows("reload-refused")) == 3)
    assert get(stack.http, "/health/live")[0] == 200
    assert not stack.rows("reloaded")
    assert daemon.stop() == 0


def test_an_end_in_the_midst_of_training_is_in_order(stack: Stack) -> None:
    edit(stack, bootstrap={"warmup_events": 60}, checkpoint={"stop_seconds": 100.0})
    daemon = stack.start("run")
    stack.wait(lambda: stack.rows("refresh-started"), 120)
    assert daemon.stop(110) == 0
    assert stack.rows("stopped")[-1]["reason"] == "SIGTERM"
    again = stack.start("run")
    # The first training is begun again: nothing else would make a first version.
    stack.wait(lambda: len(stack.rows("refresh-started")) == 2, 120)
    assert stack.rows("incident-closed")[0]["outcome"] == "interrupted"
    assert stack.events() == 100
    assert again.stop() == 0


HANGS = """
import sys, time
from daemon import service
from daemon.config import load_config
from daemon.logs import set_up
from daemon.loop import Loop

config = load_config(sys.argv[1], {})
set_up(config.log)
Loop.close = lambda self, reason: time.sleep(600)
service.run(config)
"""


def test_an_end_that_hangs_is_cut_off_in_the_stated_time(stack: Stack) -> None:
    edit(stack, checkpoint={"stop_seconds": 1.0})
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(stack.path)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        stack.wait(lambda: stack.events() == 100)
        process.terminate()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "not ended 1 s after SIGTERM (checkpoint.stop_seconds)" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


ON_TERMINAL = textwrap.dedent(
    """
    import os, sys, time
    from daemon.service import Signals
    signals = Signals(30.0)
    signals.listen()
    report = open(sys.argv[1], "w")
    print("up", file=report, flush=True)
    while not signals.stop.is_set():
        if signals.reload:
            signals.reload = False
            print("reload", file=report, flush=True)
        time.sleep(0.02)
    print("stop", file=report, flush=True)
    """
)


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.touch()

    def eventually(true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60.0
        while not true():
            assert time.monotonic() < deadline, report.read_text()
            time.sleep(0.02)

    pid, master = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(ROOT)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.execv(sys.executable, [sys.executable, "-c", ON_TERMINAL, str(report)])
    try:
        eventually(lambda: "up" in report.read_text())
        os.kill(pid, signal.SIGHUP)
        eventually(lambda: "reload" in report.read_text())
        assert "stop" not in report.read_text()
        os.close(master)
        eventually(lambda: "stop" in report.read_text())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
