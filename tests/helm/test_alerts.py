"""Each alert fires when it should and only then, in Prometheus' own test tool, and has its page."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from daemon.cli.app import COMMANDS
from helm.builder.alerts import ALERTS
from helm.builder.files import CHART, ROOT

RULES = CHART / "files" / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
NAMES = [alert.name for alert in ALERTS]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


class Case(NamedTuple):
    """Series by name and labels, and their values minute by minute, as promtool writes them.

    at: when ``fires`` must have made the alert fire, and ``quiet`` must not.
    """

    at: str
    fires: dict[str, str]
    quiet: dict[str, str]


def accuracy(window: str) -> str:
    return f'driftd_prequential_accuracy{{window="{window}"}}'


def requests(code: str) -> str:
    return f'driftd_server_requests_total{{code="{code}"}}'


def failures(reason: str) -> str:
    return f'driftd_server_load_failures_total{{reason="{reason}",version="v0002"}}'


def bucket(le: str) -> str:
    return f'driftd_server_request_seconds_bucket{{le="{le}"}}'


TRAINED = {"driftd_refresh_running": "0x2 1x3 0x20"}
LONG_AGO = {"driftd_refresh_running": "1x3 0x60"}

CASES = {
    "DriftdAccuracyLost": Case(
        "20m",
        {accuracy("reference"): "0.9x20", accuracy("recent"): "0.8x20"},
        {accuracy("reference"): "0.9x20", accuracy("recent"): "0.8x10 0.89 0.8x9"},
    ),
    "DriftdIncidentOpen": Case(
        "3h", {"driftd_incident_open": "1x180"}, {"driftd_incident_open": "1x100 0x6 1x73"}
    ),
    # The first value of a counter that was not there before counts, and a restart does not.
    "DriftdUnrepaired": Case(
        "2h",
        {'driftd_incidents_total{outcome="unrepaired"}': "_x90 1x30"},
        {
            'driftd_incidents_total{outcome="unrepaired"}': "2x90 _x10 0x20",
            'driftd_incidents_total{outcome="repaired"}': "0+1x120",
        },
    ),
    "DriftdRefreshFailing": Case(
        "2h",
        {'driftd_refreshes_total{outcome="failed",strategy="lora"}': "3x100 4x20"},
        {
            'driftd_refreshes_total{outcome="failed",strategy="lora"}': "3x120",
            'driftd_refreshes_total{outcome="trained",strategy="lora"}': "0+1x120",
        },
    ),
    "DriftdGateUndecided": Case(
        "8h",
        {"driftd_trial_events": "0+5x480", 'driftd_gate_verdicts_total{verdict="reject"}': "1x480"},
        {
            "driftd_trial_events": "0+5x480",
            'driftd_gate_verdicts_total{verdict="reject"}': "1x240 2x240",
        },
    ),
    "DriftdRolledBack": Case(
        "2h",
        {'driftd_rollbacks_total{cause="probation"}': "_x100 1x20"},
        {'driftd_rollbacks_total{cause="probation"}': "1x120"},
    ),
    "DriftdProbationLong": Case(
        "25h",
        {"driftd_probation": "1x1500", "driftd_following": "0x1500"},
        {"driftd_probation": "1x1500", "driftd_following": "1x1500"},
    ),
    "DriftdQuarantine": Case(
        "10m", {"driftd_quarantine_cases": "0x5 1x5"}, {"driftd_quarantine_cases": "1x5 0x5"}
    ),
    "DriftdLabelsNever": Case(
        "60m",
        {
            'driftd_delayed_labels_total{outcome="never"}': "0+9x60",
            'driftd_delayed_labels_total{outcome="joined"}': "0+3x60",
            'driftd_delayed_labels_total{outcome="early"}': "0+3x60",
        },
        {
            'driftd_delayed_labels_total{outcome="never"}': "0+5x60",
            'driftd_delayed_labels_total{outcome="joined"}': "0+3x60",
            'driftd_delayed_labels_total{outcome="early"}': "0+3x60",
        },
    ),
    "DriftdHeld": Case(
        "25h",
        {"driftd_paused": "1x1500", "driftd_pinned": "0x1500"},
        {"driftd_paused": "0x1500", "driftd_pinned": "1x1000 0x500"},
    ),
    "DriftdUpdateRatio": Case(
        "15m",
        {**TRAINED, 'driftd_training_update_to_weight_ratio{strategy="full"}': "0.5x20"},
        {**TRAINED, 'driftd_training_update_to_weight_ratio{strategy="full"}': "0.01x20"},
    ),
    "DriftdOverfitting": Case(
        "15m",
        {**TRAINED, 'driftd_training_validation_gap{strategy="full"}': "0.3x20"},
        {**TRAINED, 'driftd_training_validation_gap{strategy="full"}': "0.1x20"},
    ),
    "DriftdGradients": Case(
        "45m",
        {"driftd_refresh_running": "0x35 1x3 0x20", "driftd_training_gradient_norm": "50x60"},
        {**LONG_AGO, "driftd_training_gradient_norm": "50x60"},
    ),
    "DriftdDaemonGone": Case(
        "30m", {"driftd_source_connected": "1x10"}, {"driftd_source_connected": "1x30"}
    ),
    "DriftdNoLeader": Case(
        "10m",
        {'driftd_leader{instance="a"}': "0x10", 'driftd_leader{instance="b"}': "1x2 0x8"},
        {'driftd_leader{instance="a"}': "0x10", 'driftd_leader{instance="b"}': "0x3 1x7"},
    ),
    "DriftdSourceAway": Case(
        "15m", {"driftd_source_connected": "0x15"}, {"driftd_source_connected": "0x8 1 0x6"}
    ),
    # An idle stream grows old, but nothing waits in it.
    "DriftdLagging": Case(
        "30m",
        {"driftd_lag_seconds": "600x30", "driftd_lag_events": "50x30"},
        {"driftd_lag_seconds": "600x30", "driftd_lag_events": "0x30"},
    ),
    "DriftdDeadLetters": Case(
        "40m",
        {
            'driftd_dead_letters_total{reason="invalid_json"}': "0+10x40",
            'driftd_events_total{outcome="labelled"}': "0+100x40",
        },
        {
            'driftd_dead_letters_total{reason="invalid_json"}': "0+1x40",
            'driftd_events_total{outcome="labelled"}': "0+1000x40",
        },
    ),
    "DriftdCheckpointOld": Case(
        "30m",
        {"driftd_checkpoint_timestamp_seconds": "0x30"},
        {"driftd_checkpoint_timestamp_seconds": "0+60x30"},
    ),
    "DriftdErrors": Case(
        "40m",
        {'driftd_errors_total{where="checkpoint"}': "0+1x40"},
        {'driftd_errors_total{where="checkpoint"}': "0x10 1x30"},
    ),
    "DriftdNoServer": Case(
        "10m",
        {'driftd_server_ready{pod="a"}': "0x10", 'driftd_server_ready{pod="b"}': "0x10"},
        {'driftd_server_ready{pod="a"}': "0x10", 'driftd_server_ready{pod="b"}': "1x10"},
    ),
    "DriftdServerNotReady": Case(
        "15m",
        {'driftd_server_ready{pod="a"}': "0x15", 'driftd_server_ready{pod="b"}': "1x15"},
        {'driftd_server_ready{pod="a"}': "0x8 1x7"},
    ),
    "DriftdServerBehind": Case(
        "10m",
        {
            'driftd_champion_info{version="v0002"}': "1x10",
            'driftd_server_champion_info{version="v0001"}': "1x10",
        },
        {
            'driftd_champion_info{version="v0002"}': "1x10",
            'driftd_server_champion_info{version="v0001"}': "1x4",
            'driftd_server_champion_info{version="v0002"}': "_x5 1x5",
        },
    ),
    "DriftdDigestMismatch": Case(
        "90m",
        {failures("digest_mismatch"): "_x80 1x10"},
        {failures("not_found"): "_x80 1x10"},
    ),
    "DriftdVersionNotLoaded": Case(
        "40m",
        {failures("bad_graph"): "_x20 1+1x20"},
        {failures("bad_graph"): "_x10 1x30"},
    ),
    "DriftdSlow": Case(
        "30m",
        {bucket("0.5"): "0+90x30", bucket("1"): "0+100x30", bucket("+Inf"): "0+100x30"},
        {bucket("0.5"): "0+100x30", bucket("1"): "0+100x30", bucket("+Inf"): "0+100x30"},
    ),
    "DriftdServerErrors": Case(
        "30m",
        {requests("200"): "0+90x30", requests("503"): "0+5x30", requests("429"): "0+5x30"},
        {requests("200"): "0+90x30", requests("400"): "0+50x30", requests("504"): "0+1x30"},
    ),
}


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == set(NAMES)


def unit_test(name: str, series: dict[str, str], at: str, firing: bool) -> dict[str, object]:
    labelled = {
        f'{metric}{{model="m",{rest or "}"}': values
        for key, values in series.items()
        for metric, _, rest in [key.partition("{")]
    }
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in labelled.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing",model="m"}})',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": 1}] if firing else [],
            }
        ],
    }


def promtool(tmp_path: Path, tests: list[dict[str, object]], *, slow: bool = False) -> str:
    file = tmp_path / "alerts_test.yaml"
    found = {"rule_files": [str(RULES)], "evaluation_interval": "5m" if slow else "1m"}
    file.write_text(yaml.safe_dump(found | {"tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_fires_when_it_should_and_only_then(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    tests = [
        unit_test(name, case.fires, case.at, firing=True),
        unit_test(name, case.quiet, case.at, firing=False),
    ]
    slow = case.at.endswith("h")
    assert promtool(tmp_path, tests, slow=slow) == ""
    # And it can tell the two apart.
    assert promtool(tmp_path, [unit_test(name, case.quiet, case.at, firing=True)], slow=slow)


@needs_promtool
def test_no_alert_about_a_model_that_is_well(tmp_path: Path) -> None:
    """All that the quiet cases show, at once, makes none of the other alerts fire either."""
    well = {
        accuracy("reference"): "0.9x120",
        accuracy("recent"): "0.91x120",
        "driftd_incident_open": "0x120",
        "driftd_source_connected": "1x120",
        "driftd_lag_seconds": "1x120",
        "driftd_lag_events": "3x120",
        'driftd_events_total{outcome="labelled"}': "0+100x120",
        "driftd_checkpoint_timestamp_seconds": "0+60x120",
        "driftd_probation": "0x120",
        "driftd_paused": "0x120",
        "driftd_pinned": "0x120",
        "driftd_refresh_running": "0x120",
        'driftd_champion_info{version="v0002"}': "1x120",
        'driftd_server_champion_info{version="v0002"}': "1x120",
        'driftd_server_ready{pod="a"}': "1x120",
        requests("200"): "0+100x120",
        bucket("0.5"): "0+100x120",
        bucket("+Inf"): "0+100x120",
    }
    test = unit_test("", well, "2h", firing=False)
    test["promql_expr_test"] = [{"expr": "ALERTS", "eval_time": "2h", "exp_samples": []}]
    assert promtool(tmp_path, [test]) == ""


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("Driftd*.md")} == set(NAMES)
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((Driftd\w+)\.md\)", index)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_it_means_and_what_to_do(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    for heading in ("## What it means", "## Find out", "## Do"):
        assert heading in text


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_commands_of_a_page_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = set(re.findall(r"`driftd ([a-z]+)|^ *driftd ([a-z]+)", text, re.MULTILINE))
    assert {a or b for a, b in commands} <= COMMANDS.keys()
