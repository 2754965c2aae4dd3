"""Log lines: for people as text, for collectors as JSON, and the Kafka client kept quiet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import logging
from daemon.logs import set_up
from daemon.policy_config import LogConfig

set_up(LogConfig(level={level!r}, format={format!r}))
log = logging.getLogger("driftd.source")
log.debug("detail")
log.warning("cannot read %s", "x\\ny")
logging.getLogger("kafka.net").error("socket disconnected")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("oh no")
"""


def run(level: str, format: str) -> list[str]:
    program = PROGRAM.format(level=level, format=format)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_text() -> None:
    lines = run("info", "text")
    time, _, rest = lines[0].partition(" ")
    assert time.endswith("Z")
    assert rest == "warning source: cannot read x"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert not any("socket" in line or "detail" in line for line in lines)


@pytest.mark.parametrize("level", ["info", "debug"])
def test_json_is_one_object_a_line(level: str) -> None:
    rows = [json.loads(line) for line in run(level, "json")]
    found = {row["message"]: row for row in rows}
    assert found["cannot read x\ny"]["level"] == "warning"
    assert found["cannot read x\ny"]["logger"] == "driftd.source"
    assert "ZeroDivisionError" in found["oh no"]["trace"]
    # The client's own lines are for those who look for them.
    assert ("socket disconnected" in found) == (level == "debug")


CRASH = """
import threading, warnings
from daemon.logs import know, set_up
from daemon.policy_config import LogConfig

set_up(LogConfig(format="json"))
know(lambda: {"version": "v0007", "offsets": {"t/0": 42}})
warnings.warn("old", DeprecationWarning, stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise RuntimeError("oh no")
"""


def test_warnings_and_crashes_are_json_lines_with_what_the_process_knows() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", CRASH], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    rows = [json.loads(line) for line in result.stderr.splitlines()]
    assert [row["level"] for row in rows] == ["warning", "critical", "critical"]
    assert "DeprecationWarning: old" in rows[0]["message"]
    assert rows[1]["message"] == "worker crashed: division by zero"
    assert "RuntimeError: oh no" in rows[2]["trace"]
    for row in rows:
        assert (row["version"], row["offsets"]) == ("v0007", {"t/0": 42})
        assert row["release"]


def test_the_last_words_of_a_command_are_a_json_line_too(tmp_path: Path) -> None:
    (tmp_path / "driftd.yaml").write_text(
        "source: {kind: stdin}\nlog: {format: json}\nserver: {access: {tokens: nowhere}}\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "serve"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    rows = [json.loads(line) for line in result.stderr.splitlines()]
    assert "cannot read the tokens" in rows[-1]["message"]
