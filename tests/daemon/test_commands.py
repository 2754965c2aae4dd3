"""The command line: orders from another process, exit codes for scripts, help for people."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import app, output
from daemon.cli.reference import reference
from registry import Counts, ManifestDraft, Registry, Traffic, open_registry

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = list(app.COMMANDS)


class Result:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def driftd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command in a folder of its own, with nothing set in the environment."""
    for name in list(os.environ):
        if name.startswith("DRIFTD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = app.run(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def publish(registry: Registry, folder: Path, n: int) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.int8.onnx").write_bytes(b"model" * n)
    (folder / "head.safetensors").write_bytes(b"same")
    draft = ManifestDraft(
        parent=f"v{n - 1:04d}" if n > 1 else None,
        strategy="head",
        rung="head",
        task="text",
        labels=["a", "b", "c"][: n + 1],
        metrics={"accuracy": 0.8 + n / 100},
        lineage={
            "examples": 100 * n,
            "trained_on": [{"topic": "t", "partition": 0, "start": 0, "end": n * 100}],
        },
    )
    return registry.publish(folder, draft, actor="test").id


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with three versions, the second of which serves."""
    made = open_registry(tmp_path / "driftd-registry", create=True)
    for n in (1, 2, 3):
        publish(made, tmp_path / "build", n)
    made.promote("v0001", actor="daemon", reason="bootstrap")
    made.promote("v0002", actor="daemon", reason="better: +2.0 points on 300 unseen events")
    made.attach(
        "v0002",
        "gate",
        {
            "decision": "promote",
            "reason": "better: +2.0 points",
            "checks": [{"name": "paired", "outcome": "pass", "sentence": "better: +2.0 points"}],
        },
    )
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "driftd.yaml"
    path.write_text("source: {kind: stdin}\nhttp: {port: 1}\n")
    return path


# ------------------------------------------------------------------ help, version, usage


def test_help_lists_every_command_and_the_exit_codes(driftd: Any) -> None:
    result = driftd("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w.*[^.]\.$", result.out, re.MULTILINE), name
    for code in ("0    done", "1    refused", "2    wrong usage", "3    not found"):
        assert code in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(driftd: Any, name: str) -> None:
    result = driftd(name, "--help")
    assert result.code == 0
    assert re.search(r"Examples?:\n\s+.*driftd", result.out), result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_the_version_is_told(driftd: Any) -> None:
    result = driftd("--version")
    assert result.code == 0
    assert re.fullmatch(r"driftd (\d+\.\d+\.\d+\S*|unknown)\n", result.out)


def test_a_typo_in_a_command_is_helped(driftd: Any) -> None:
    result = driftd("rolback")
    assert result.code == 2
    assert "Did you mean 'rollback'?" in result.err


def test_the_page_has_every_command_s_help() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    _, _, tail = page.partition("<!-- generated: python -m daemon.cli.reference -->\n")
    assert tail.strip() == reference().strip(), (
        "docs/cli.md is out of date: replace what follows its marker with the output of"
        " `python -m daemon.cli.reference`"
    )


# ------------------------------------------------------------------ orders


@pytest.mark.parametrize(
    "arguments", [["promote", "v0003"], ["rollback"], ["pin"], ["unpin"], ["pause"], ["resume"]]
)
@pytest.mark.parametrize("reason", [[], ["--reason", "  "]])
def test_what_changes_serving_needs_a_reason(
    driftd: Any, registry: Registry, config: Path, arguments: list[str], reason: list[str]
) -> None:
    before = registry.state()
    result = driftd(*arguments, *reason)
    assert result.code == 2
    assert "Say why, for the journal: --reason" in result.err
    assert registry.state() == before


def test_orders_act_on_the_registry_and_are_journalled(
    driftd: Any, registry: Registry, config: Path
) -> None:
    promoted = driftd("promote", "v0003", "--reason", "own test")
    assert promoted.out == "v0003 serves now; v0002 before.\n"
    rolled = driftd("rollback", "--reason", "errors")
    assert rolled.out == "v0002 serves again; v0003 is withdrawn.\n"
    assert driftd("pin", "--reason", "sale").code == 0
    assert registry.state().pinned is not None
    assert driftd("unpin", "--reason", "over").code == 0
    assert driftd("pause", "--reason", "bad labels").code == 0
    assert registry.state().paused is not None
    assert driftd("resume", "--reason", "mended").code == 0
    state = registry.state()
    assert (state.champion, state.pinned, state.paused) == ("v0002", None, None)
    rows = list(registry.journal.rows())[-6:]
    assert [(row.kind, row.fields["reason"]) for row in rows] == [
        ("promote", "own test"),
        ("rollback", "errors"),
        ("pin", "sale"),
        ("unpin", "over"),
        ("pause", "bad labels"),
        ("resume", "mended"),
    ]
    host = re.escape(socket.gethostname())
    assert all(re.fullmatch(rf".+@{host}", row.fields["actor"]) for row in rows)


def test_refusals_have_exit_code_1_and_say_what_to_do(
    driftd: Any, registry: Registry, config: Path
) -> None:
    driftd("promote", "v0003", "--reason", "x")
    driftd("rollback", "--reason", "x")
    result = driftd("promote", "v0003", "--reason", "x")
    assert result.code == 1
    assert "--force" in result.err
    driftd("pin", "--reason", "sale")
    result = driftd("promote", "v0001", "--reason", "x")
    assert result.code == 1
    assert "pinned (sale)" in result.err
    assert driftd("promote", "v0003", "--force", "--reason", "x").code == 0
    assert driftd("promote", "v0003", "--reason", "x").code == 1


def test_rolling_back_works_while_pinned_and_to_a_named_version(
    driftd: Any, registry: Registry, config: Path
) -> None:
    driftd("promote", "v0003", "--reason", "x")
    driftd("pin", "--reason", "sale")
    assert driftd("rollback", "--to", "v0001", "--reason", "emergency").code == 0
    assert registry.state().champion == "v0001"


def test_pinning_a_version_promotes_it_first(driftd: Any, registry: Registry, config: Path) -> None:
    found = driftd("pin", "v0003", "--reason", "audit", "--json").json()
    assert found["champion"] == "v0003"
    assert found["pinned"]["reason"] == "audit"
    assert driftd("pin", "v0003", "--reason", "again").code == 0


def test_a_challenger_is_routed_and_shown(driftd: Any, registry: Registry, config: Path) -> None:
    assert driftd("route").out == "No challenger sees traffic.\n"
    said = driftd("route", "canary", "v0003", "--share", "5", "--reason", "a first step")
    assert said.out == "v0003 sees 5 % of the requests, beside v0002.\n"
    registry.report("a", Traffic(registry.routing().generation, Counts(10, 1, 2), Counts(190)))
    shown = driftd("route").out
    assert "canary: v0003 sees 5 %" in shown
    assert re.search(r"v0003 +│? +10 +│? +1 +│? +2", shown)
    asked = ("--slow-seconds", "0.1", "--reason", "look", "--json")
    found = driftd("route", "shadow", "v0003", *asked).json()
    assert (found["mode"], found["slow_seconds"], found["generation"]) == ("shadow", 0.1, 2)
    assert driftd("route", "--json").json()["traffic"]["champion"]["requests"] == 0
    assert driftd("route", "off", "--reason", "seen").code == 0
    assert registry.routing().mode == "off"
    rows = list(registry.journal.rows(kinds=("route",)))
    assert [row.fields["reason"] for row in rows] == ["a first step", "look", "seen"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["canary", "v0003", "--share", "5"],
        ["canary", "v0003", "--reason", "x"],
        ["shadow", "--reason", "x"],
        ["shadow", "v0003", "--share", "5", "--reason", "x"],
        ["off", "v0003", "--reason", "x"],
        ["canary", "v0003", "--share", "101", "--reason", "x"],
    ],
)
def test_what_is_no_routing_is_wrong_usage(
    driftd: Any, registry: Registry, config: Path, arguments: list[str]
) -> None:
    assert driftd("route", *arguments).code == 2
    assert registry.routing().mode == "off"


def test_a_refresh_is_a_request_that_waits(driftd: Any, registry: Registry, config: Path) -> None:
    assert driftd("refresh").code == 0
    asked = driftd("refresh", "--rung", "lora", "--reason", "new lines", "--json").json()
    one, two = registry.requests()
    assert (one.kind, one.body) == ("refresh", {"rung": None, "without": []})
    body = {"rung": "lora", "without": []}
    assert (two.body, two.reason, two.id) == (body, "new lines", asked["id"])
    assert driftd("refresh", "--rung", "huge").code == 2


def test_a_case_of_the_quarantine_is_decided_by_request(
    driftd: Any, registry: Registry, config: Path
) -> None:
    assert driftd("quarantine").code == 3  # no daemon answers
    assert driftd("quarantine", "release", "q0001").code == 2
    assert driftd("quarantine", "drop", "--reason", "wrong").code == 2
    asked = driftd("quarantine", "drop", "q0001", "--reason", "stolen account", "--json").json()
    (one,) = registry.requests()
    assert (one.kind, one.body) == ("quarantine", {"action": "drop", "case": "q0001"})
    assert (one.reason, one.id) == ("stolen account", asked["id"])


def test_a_rollback_to_before_an_offset_withdraws_all_that_learned_from_it(
    driftd: Any, registry: Registry, config: Path
) -> None:
    driftd("promote", "v0003", "--reason", "x")
    wrong = driftd("rollback", "--before-offset", "t:0:400", "--reason", "x")
    assert wrong.code == 1
    assert "v0003 has learned nothing of that" in wrong.err
    # v0002 learned from offsets 0 to 199 by itself, v0003 from 0 to 299.
    result = driftd("rollback", "--before-offset", "t:0:150", "--reason", "poisoned")
    assert result.out == "v0001 serves again; v0002, v0003 are withdrawn.\n"
    assert driftd("promote", "v0002", "--reason", "x").code == 1
    assert driftd("rollback", "--before-offset", "t:0:-", "--reason", "x").code == 2
    both = driftd("rollback", "--before-offset", "t:0:9", "--to", "v0001", "--reason", "x")
    assert both.code == 2


def test_a_rollback_to_before_a_time(driftd: Any, registry: Registry, config: Path) -> None:
    made = registry.version("v0002").manifest.created
    result = driftd("rollback", "--before-time", made, "--reason", "x")
    assert result.out == "v0001 serves again; v0002, v0003 are withdrawn.\n"
    assert driftd("rollback", "--before-time", "noon", "--reason", "x").code == 2


def test_a_refresh_can_leave_offsets_out(driftd: Any, registry: Registry, config: Path) -> None:
    arguments = ["refresh", "--without-range", "t:0:5-9", "--without-range", "a:b:1:7-8"]
    assert driftd(*arguments).code == 0
    (request,) = registry.requests()
    assert request.body["without"] == [
        {"topic": "t", "partition": 0, "start": 5, "end": 9},
        {"topic": "a:b", "partition": 1, "start": 7, "end": 8},
    ]
    for wrong in ("t:0:5", "t:0:9-9", "t:0:9-5", "0:5-9", "t:x:5-9"):
        assert driftd("refresh", "--without-range", wrong).code == 2, wrong
    assert driftd("refresh", "--without-range", "t:0:5-9", "--rung", "recall").code == 2


# ------------------------------------------------------------------ which registry


def test_what_is_not_there_has_exit_code_3(driftd: Any, registry: Registry, config: Path) -> None:
    for arguments in (
        ["show", "v9999"],
        ["diff", "v0001", "v9999"],
        ["promote", "v9999", "--reason", "x"],
        ["show", "challenger"],
        ["versions", "--registry", "nowhere"],
    ):
        result = driftd(*arguments)
        assert result.code == 3, arguments
        assert result.err.startswith("driftd: there is no ")
        assert "Traceback" not in result.err


def test_a_missing_config_has_exit_code_2(driftd: Any) -> None:
    result = driftd("versions")
    assert result.code == 2
    assert result.err == (
        "driftd.yaml: cannot read it: No such file or directory; `driftd init` writes one, -c"
        " names another\n"
    )


def test_a_registry_can_be_named_without_any_config(driftd: Any, registry: Registry) -> None:
    result = driftd("versions", "--registry", "driftd-registry")
    assert result.code == 0
    assert "v0002" in result.out


def test_a_rollback_works_while_another_section_is_broken(
    driftd: Any, registry: Registry, config: Path
) -> None:
    config.write_text("source: {kind: nonsense}\ngate: {alpha: x}\n")
    assert driftd("rollback", "--reason", "fire").code == 0
    config.write_text("registry: {pathh: x}\n")
    result = driftd("rollback", "--reason", "fire")
    assert result.code == 2
    assert "driftd.yaml:1:12: registry.pathh: unknown key; did you mean 'path'?" in result.err


def test_the_config_may_be_named_by_the_environment(
    driftd: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.yaml").write_text("registry: {path: nowhere}\n")
    monkeypatch.setenv("DRIFTD_CONFIG", "other.yaml")
    assert driftd("versions").code == 3
    monkeypatch.setenv("DRIFTD_REGISTRY__PATH", "driftd-registry")
    assert driftd("versions").code == 0


# ------------------------------------------------------------------ looking


def test_versions_as_a_table_and_as_json(driftd: Any, registry: Registry, config: Path) -> None:
    result = driftd("versions")
    assert "\x1b[" not in result.out
    assert max(map(len, result.out.splitlines())) <= 100
    assert re.search(r"v0002 +champion .*head +v0001 +200 +82\.0%", result.out)
    assert re.search(r"v0001 +previous", result.out)
    found = driftd("versions", "--json").json()
    assert [v["version"] for v in found] == ["v0001", "v0002", "v0003"]
    assert found[1]["role"] == "champion"
    assert [v["version"] for v in driftd("versions", "-n", "1", "--json").json()] == ["v0003"]


def test_an_empty_registry_is_said_to_be_empty(driftd: Any, tmp_path: Path, config: Path) -> None:
    open_registry(tmp_path / "driftd-registry", create=True)
    assert driftd("versions").out == "No versions yet.\n"
    assert driftd("versions", "--json").json() == []
    result = driftd("rollback", "--reason", "x")
    assert result.code == 1
    assert "no earlier champion" in result.err


def test_show_has_lineage_digests_evidence_and_history(
    driftd: Any, registry: Registry, config: Path
) -> None:
    result = driftd("show", "champion")
    for expected in ("v0002", "champion", "accuracy", "200", "model.int8.onnx", "gate", "promote",
                     "better: +2.0 points", "by daemon"):  # fmt: skip
        assert expected in result.out, expected
    assert max(map(len, result.out.splitlines())) <= 100
    found = driftd("show", "v0002", "--json").json()
    assert found["lineage"]["trained_on"] == [
        {"topic": "t", "partition": 0, "start": 0, "end": 200}
    ]
    assert found["evidence"][0]["evidence"]["decision"] == "promote"


def test_show_prints_all_of_the_evidence(driftd: Any, registry: Registry, config: Path) -> None:
    registry.attach(
        "v0001",
        "gate",
        {
            "paired": {"events": 300, "wins": 12, "p": 0.01234},
            "classes": {"bank card": {"wins": 7, "losses": 3}, "other": {"wins": 5, "losses": 1}},
            "champion": "v0777",
            "checks": [{"name": "size", "outcome": "pass", "sentence": "ok", "limit": 0.263}],
        },
    )
    printed = driftd("show", "v0001").out
    for expected in ("0.01234", "bank card", "losses", "v0777", "0.263"):
        assert expected in printed, expected


def test_who_served_at_a_past_time(driftd: Any, registry: Registry, config: Path) -> None:
    time.sleep(0.002)  # times in the journal are milliseconds
    registry.promote("v0003", actor="test", reason="better")
    last = datetime.fromisoformat(registry.serving_at("9999-01-01").time)
    assert driftd("versions", "--at", last.isoformat()).out.startswith("v0003 served at")
    assert driftd("versions", "--at", "2001-01-01").out.startswith("Nothing served yet at")
    before = (last - timedelta(milliseconds=1)).isoformat()
    found = driftd("versions", "--at", before, "--json").json()
    assert (found["version"], found["kind"]) == ("v0002", "promote")
    assert driftd("versions", "--at", "yesterday").code == 2


def test_diff_names_what_differs(driftd: Any, registry: Registry, config: Path) -> None:
    result = driftd("diff", "previous", "champion")
    assert re.search(r"metrics.accuracy +0\.81 +0\.82", result.out)
    assert re.search(r"labels +without c +3", result.out)
    assert "files.model.int8.onnx" in result.out
    assert "files.head.safetensors" not in result.out
    found = driftd("diff", "v0001", "v0002", "--json").json()
    assert (found["a"], found["b"]) == ("v0001", "v0002")
    assert found["differences"]["parent"] == [None, "v0001"]


def test_the_journal_filters_limits_and_prints_json_lines(
    driftd: Any, registry: Registry, config: Path
) -> None:
    result = driftd("journal", "-n", "2")
    assert "better: +2.0 points on 300 unseen events; by daemon" in " ".join(result.out.split())
    rows = [json.loads(line) for line in driftd("journal", "--all", "--json").out.splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    lines = driftd("journal", "--kind", "promote", "--json").out.splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"promote"}
    since = driftd("journal", "--since", str(len(rows) - 1), "--json").out.splitlines()
    assert len(since) == 1


def test_the_journal_can_be_followed(registry: Registry, config: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", "journal", "-n", "1", "-f", "--json",
         "--registry", "driftd-registry"],
        cwd=config.parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["kind"] == "promote"
        registry.pause(actor="me", reason="look")
        assert json.loads(process.stdout.readline())["reason"] == "look"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_reader_that_has_seen_enough_is_no_error(registry: Registry, config: Path) -> None:
    for n in range(300):
        registry.journal.append("note", reason="x" * 500, n=n)
    command = f"{sys.executable} -m daemon.cli journal --all --registry driftd-registry | head -1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


# ------------------------------------------------------------------ status

STATUS = {
    "model": "shop",
    "state": "trial",
    "ready": True,
    "reason": "ready",
    "started": 1_700_000_000.0,
    "events": 12_345,
    "labelled": 12_000,
    "accuracy": {"total": 0.91, "recent": 0.874},
    "source": {"connected": True, "lag_events": 1_234, "positions": []},
    "drift": {
        "watching": True,
        "signals": [{"detector": "error_rate", "kind": "concept", "score": 3.2, "threshold": 9.0}],
    },
    "incident": {
        "sentence": "accuracy fell by 8 points",
        "attempts": [{"rung": "head", "outcome": "rejected"}],
    },
    "refresh": {"rung": "lora", "seconds": 75.0},
    "trial": {"version": "v0003", "decision": "undecided", "reason": "collecting: 30 events"},
    "probation": None,
    "memory": {"recent": 4000},
    "checkpoint_age_seconds": 4.2,
}


@pytest.fixture
def daemon_port() -> Iterator[int]:
    """A daemon as far as /status goes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/status" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(STATUS).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_status_without_a_daemon_still_says_who_serves(
    driftd: Any, registry: Registry, config: Path
) -> None:
    driftd("pin", "--reason", "sale")
    result = driftd("status")
    assert result.code == 0
    assert "v0002" in result.out
    assert "sale" in result.out
    assert "daemon: not reachable at http://127.0.0.1:1/status" in result.out
    found = driftd("status", "--json").json()
    assert found["daemon"] is None
    assert found["registry"]["champion"] == "v0002"


def test_status_with_a_daemon(
    driftd: Any, registry: Registry, config: Path, daemon_port: int
) -> None:
    config.write_text(f"http: {{port: {daemon_port}, host: 0.0.0.0}}\n")
    result = driftd("status")
    assert result.code == 0
    for expected in ("12,345", "recent 87.4%", "connected, 1,234 events behind", "error_rate",
                     "accuracy fell by 8 points; tried: head (rejected)", "lora, running for 75 s",
                     "v0003: undecided; collecting: 30 events", "4 s ago"):  # fmt: skip
        assert expected in result.out, expected
    assert max(map(len, result.out.splitlines())) <= 100
    assert driftd("status", "--json").json()["daemon"]["events"] == 12_345


def test_status_with_neither_has_exit_code_3(driftd: Any, config: Path) -> None:
    result = driftd("status")
    assert result.code == 3
    assert "there is no registry at" in result.out


def test_a_daemon_that_answers_nonsense_is_not_reachable(
    driftd: Any, registry: Registry, config: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config.write_text(f"http: {{port: {listener.getsockname()[1]}}}\n")

        def answer() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert "not reachable" in driftd("status").out
        thread.join(5)


# ------------------------------------------------------------------ init and check


@pytest.mark.parametrize("task", ["text", "tabular"])
@pytest.mark.parametrize("source", ["kafka", "file", "stdin"])
def test_what_init_writes_check_accepts(driftd: Any, task: str, source: str) -> None:
    result = driftd("init", "--task", task, "--source", source)
    assert result.code == 0
    assert result.out == "Wrote driftd.yaml. Next: edit it, then `driftd check`.\n"
    result = driftd("check")
    assert (result.code, result.out) == (0, "driftd.yaml is fine.\n")
    assert driftd("check", "--json").json() == {"ok": True, "problems": []}


def test_check_says_what_a_model_of_river_is_not(driftd: Any, tmp_path: Path) -> None:
    assert driftd("init", "--task", "tabular", "--source", "file").code == 0
    path = tmp_path / "driftd.yaml"
    path.write_text(path.read_text().replace("task: tabular", "task: tabular\n  table: river"))
    result = driftd("check")
    assert result.code == 0, result.out
    assert "no ONNX graph" in result.out
    assert "driftd[river]" in result.out


def test_init_overwrites_only_when_told_to(driftd: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    result = driftd("init", "-o", "mine.yaml")
    assert result.code == 1
    assert "mine.yaml exists: name another with -o, or use --force" in result.err
    assert path.read_text() == "precious"
    assert driftd("init", "-o", "mine.yaml", "--force").code == 0
    assert driftd("check", "-c", "mine.yaml").code == 0
    result = driftd("init", "-o", "no/such/folder.yaml")
    assert result.code == 1
    assert "No such file or directory" in result.err


def test_check_says_every_problem_with_its_line(
    driftd: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("source:\n  kind: kafka\n  topik: x\n")
    monkeypatch.setenv("DRIFTD_GATE__ALPHA", "7")
    result = driftd("check")
    assert result.code == 2
    assert "driftd.yaml:3:3: source.topik: unknown key; did you mean 'topic'?" in result.err
    assert "DRIFTD_GATE__ALPHA: gate.alpha: must be less than 1, not 7" in result.err
    assert "4 problems." in result.err
    found = driftd("check", "--json")
    assert found.code == 2
    assert {p["line"] for p in found.json()["problems"]} == {1, 3, None}


def test_check_can_try_what_the_config_points_to(driftd: Any, config: Path, tmp_path: Path) -> None:
    config.write_text(
        "source: {kind: file, path: nothing.jsonl}\n"
        "registry: {path: driftd.yaml}\n"
        "model: {base: 'package:nothing_like_it'}\n"
    )
    assert driftd("check").code == 0
    result = driftd("check", "--connect")
    assert result.code == 3
    assert "source.path: there is no file nothing.jsonl" in result.err
    assert "registry.path: " in result.err
    assert "model.base: the package nothing_like_it is not installed" in result.err
    (tmp_path / "nothing.jsonl").touch()
    config.write_text("source: {kind: file, path: nothing.jsonl}\n")
    assert driftd("check", "--connect").code == 0
    assert not (tmp_path / "driftd-registry").exists()


def test_check_can_try_the_broker(driftd: Any, config: Path, broker: Any) -> None:
    def with_source(bootstrap: str, topic: str) -> Result:
        config.write_text(
            f"source: {{kind: kafka, topic: {topic}, bootstrap_servers: '{bootstrap}'}}\n"
        )
        found: Result = driftd("check", "--connect")
        return found

    assert with_source(broker.bootstrap, broker.topic()).code == 0
    result = with_source(broker.bootstrap, "no-such-topic")
    assert result.code == 3
    assert "has no topic 'no-such-topic'" in result.err
    result = with_source("127.0.0.1:1", "x")
    assert result.code == 3
    assert "does not answer" in result.err


# ------------------------------------------------------------------ without the training extra

BLOCKER = textwrap.dedent(
    """
    import sys

    class Blocker:
        names = {"kafka", "onnx", "peft", "river", "scipy", "torch", "transformers"}

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in self.names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
    from daemon.cli import app
    """
)


def blocked(*arguments: str) -> list[str]:
    """A command line of driftd on which the training extra is not installed."""
    return [sys.executable, "-c", BLOCKER + f"sys.exit(app.run({list(arguments)!r}))"]


def without_extra(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        blocked(*arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status"],
        ["versions"],
        ["show", "champion"],
        ["diff", "v0001", "v0002"],
        ["promote", "v0003", "--reason", "x"],
        ["rollback", "--reason", "x"],
        ["pin", "--reason", "x"],
        ["refresh"],
        ["journal"],
    ],
)
def test_operating_needs_the_base_install_only(
    registry: Registry, config: Path, arguments: list[str]
) -> None:
    result = without_extra(config.parent, *arguments)
    assert result.returncode == 0, result.stderr


def test_running_without_the_extra_says_what_to_install(config: Path) -> None:
    result = without_extra(config.parent, "run")
    assert result.returncode == 1
    assert 'pip install "driftd[daemon]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_serving_runs_without_the_extra(registry: Registry, config: Path) -> None:
    config.write_text("server: {port: 0, notice_seconds: 0}\n")
    process = subprocess.Popen(
        blocked("serve"),
        cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening on http://127.0.0.1:" in line:
                break
        else:
            pytest.fail("it never listened")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_port_in_use_is_a_clear_message(
    driftd: Any, registry: Registry, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.cli.processes.set_up", lambda _: None)  # this process's own log
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(f"server: {{port: {port}}}\n")
        result = driftd("serve")
    assert result.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.err
    assert "Traceback" not in result.err


def test_up_does_not_take_standard_input(driftd: Any, config: Path) -> None:
    result = driftd("up")
    assert result.code == 2
    assert "`driftd run` and `driftd serve`" in result.err


# ------------------------------------------------------------------ words for people


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (-5, "0 s")],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert output.span(seconds) == words


def test_moments() -> None:
    assert output.clock("2026-01-31T12:00:00.123+01:00") == "2026-01-31 11:00:00"
    assert output.clock(0) == ""
    assert output.clock("never") == "never"
    assert output.ago("never") == ""
    assert output.ago(None) == ""
