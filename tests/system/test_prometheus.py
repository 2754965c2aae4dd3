"""A real Prometheus scrapes real daemons and a server through drift, repair and rollback.

Every query of every panel and rule is put to it; one alert goes all the way through Alertmanager.
"""

import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.builder.alerts import ALERTS
from helm.builder.dashboards import DASHBOARDS
from helm.builder.files import CHART
from helm.builder.pages import used
from tests.confined import USER
from tests.conftest import BrokerForTests
from tests.system.monitored import MODEL, MODELS, Stack, eventually, fetch, free_port, live

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="Prometheus is not installed (Debian: prometheus)",
    ),
    pytest.mark.timeout(600),
]

CHOSEN = {
    "$namespace": "ml",
    "$__rate_interval": "2m",
    "$__range": "10m",
}


@pytest.fixture(scope="module")
def stack(broker: BrokerForTests) -> Iterator[Stack]:
    """The stack after all has happened that a dashboard shows."""
    pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")
    folder = Path(tempfile.mkdtemp(prefix="driftd-"))
    found = Stack(folder, broker)
    try:
        found.start()
        live(found)
        yield found
    except BaseException:
        for path in (*folder.glob("*.log"), *folder.glob("*/registry/journal.jsonl")):
            print(path, path.read_text(errors="replace")[-5000:], sep="\n")
        raise
    finally:
        found.stop()
        shutil.rmtree(folder)


def panels() -> Iterator[Any]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield pytest.param(
                    target["expr"], id=f"{name}: {panel['title']}: {target['legendFormat']}"
                )
        for annotation in dashboard["annotations"]["list"]:
            yield pytest.param(annotation["expr"], id=f"{name}: {annotation['name']}")


@pytest.mark.parametrize("expr", list(panels()))
def test_a_panel_shows_something(stack: Stack, expr: str) -> None:
    for variable, value in CHOSEN.items():
        expr = expr.replace(variable, value)
    expr = expr.replace("[1m]", "[10m]").replace("offset 1m", "offset 10m")
    assert any(stack.query(expr.replace("$model", model)) for model in MODELS)


def test_variables_of_the_dashboards_find_the_model(stack: Stack) -> None:
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"][1:]:
            match, label = (
                variable["query"]["query"].removeprefix("label_values(")[:-1].rsplit(", ")
            )
            match = match.replace("$namespace", ".*")
            asked = urllib.parse.urlencode({"match[]": match})
            found = fetch(f"{stack.prometheus}/api/v1/label/{label}/values?{asked}")["data"]
            if label == "model":
                assert MODEL in found
                assert set(found) <= set(MODELS)
            else:
                assert found == [CHOSEN[f"${label}"]]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_rule_is_accepted_and_finds_its_metrics(stack: Stack, alert: Any) -> None:
    """That each fires when it should, and only then, is tested by promtool."""
    stack.query(alert.expr)
    for name in used(alert.expr):
        assert stack.query(name) or stack.query(f"{name}_count"), name


def test_rules_are_evaluated_without_errors(stack: Stack) -> None:
    groups = fetch(f"{stack.prometheus}/api/v1/rules")["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == {alert.name for alert in ALERTS}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    for name in ("DriftdRolledBack", "DriftdDigestMismatch", "DriftdErrors"):
        assert rules[name]["state"] == "firing", name
    assert rules["DriftdNoServer"]["state"] == "inactive"


def test_metrics_tell_what_happened(stack: Stack) -> None:
    assert stack.value('driftd_dead_letters_total{model="turning",reason="invalid_json"}') == 1
    assert stack.value('driftd_events_total{model="turning",outcome="unlabelled"}') == 1
    assert stack.value('sum(driftd_alarms_total{model="turning"})') >= 1
    assert stack.value('driftd_promotions_total{model="turning",rung="full"}') == 1
    assert stack.value('driftd_rollbacks_total{model="turning",cause="operator"}') == 1
    assert stack.value('sum(driftd_server_requests_total{code="200"})') == stack.asked
    assert stack.value('driftd_server_requests_total{code="400"}') == 5


def test_an_alert_reaches_a_person(stack: Stack) -> None:
    if shutil.which("prometheus-alertmanager") is None:
        pytest.skip("Alertmanager is not installed (Debian: prometheus-alertmanager)")
    stack.order("pause")

    def arrived() -> list[dict[str, Any]]:
        return [a for a in stack.received if a["labels"]["alertname"] == "DriftdHeld"]

    alert = eventually(arrived)[0]
    assert alert["labels"]["model"] == MODEL
    assert alert["labels"]["namespace"] == "ml"
    assert alert["labels"]["severity"] == "info"
    assert alert["annotations"]["summary"] == f"{MODEL} has been paused or pinned for a day"
    stack.order("resume")
    eventually(lambda: any(a["status"] == "resolved" for a in arrived()))


def test_helm_test_tells_a_stack_that_works_from_one_that_does_not(stack: Stack) -> None:
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    values = {"config": {"source": {"kind": "file", "path": "/events.jsonl"}}}
    rendered = helm.Chart.load(CHART).render(values, name="driftd", namespace="ml")
    pod = yaml.safe_load(rendered["driftd/templates/tests/test.yaml"])
    (script,) = pod["spec"]["containers"][0]["args"]
    for server, code in ((stack.server, 0), (f"http://127.0.0.1:{free_port()}", 1)):
        command = script.replace("http://driftd-daemon:8081", stack.daemon)
        command = command.replace("http://driftd:8080", server)
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr


def test_it_runs_as_on_kubernetes(stack: Stack) -> None:
    """Without root, without capabilities, and with nothing to write but its folder."""
    if not stack.confined:
        pytest.skip("needs root, unshare and setpriv, to give the rights up again")
    for process in stack.driftds:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        assert status["Uid"] == [str(USER)] * 4
        assert int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0
        assert status["NoNewPrivs"] == ["1"]
        mounts = Path(f"/proc/{process.pid}/mounts").read_text().splitlines()
        root = [line.split() for line in mounts if line.split()[1] == "/"][-1]
        assert "ro" in root[3].split(",")
    for path in stack.folder.glob("*-*.log"):
        assert "Traceback" not in path.read_text(errors="replace"), path
