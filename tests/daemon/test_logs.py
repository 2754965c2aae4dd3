"""Log lines: for people as text, for collectors as JSON, and the Kafka client kept quiet."""

import json
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
