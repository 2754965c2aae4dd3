"""The chart: strict, valid for every Kubernetes it names, restricted, and true to the code."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.config import load_config
from daemon.operating_config import load_operating
from deploy.config import PredictionLogConfig
from deploy.openapi import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "driftd"
KUBERNETES = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
# Fields that our custom resources may have below `spec`: their own schemas let typos pass.
CUSTOM = {
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "ServiceMonitor": {"selector", "endpoints"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "cooldownPeriod",
        "triggers",
    },
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
    "InferenceService": {"predictor"},
}
# Fields of a KServe predictor that are not fields of a pod.
PREDICTOR = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "labels", "annotations"}
SOURCE = {"kind": "file", "path": "/events.jsonl"}
LOG = {
    "bootstrap_servers": ["kafka:9093"],
    "topic": "answers",
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_username": "driftd",
}
MODELS = ROOT / ".cache" / "kubernetes-models"
MODEL_PACKAGES = {
    "monitoring.coreos.com": "prometheus-operator",
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
}
VALIDATE = """
import fs from "node:fs";
for (const [file, manifest] of JSON.parse(fs.readFileSync(0, "utf8"))) {
  const found = await import(file);
  const Model = found[manifest.kind] ?? found.default[manifest.kind];
  new (Model.default ?? Model)(manifest).validate();
}
"""

Manifests = list[dict[str, Any]]
Render = Callable[..., Manifests]


def of_kind(manifests: Manifests, *kinds: str) -> Manifests:
    return [m for m in manifests if m["kind"] in kinds]


def training_jobs(manifests: Manifests) -> Manifests:
    """What the daemon makes Jobs of."""
    data = [m["data"].get("training-job.yaml") for m in of_kind(manifests, "ConfigMap")]
    return [yaml.safe_load(text) for text in data if text]


def pods(manifests: Manifests) -> Iterator[dict[str, Any]]:
    """The spec of every pod that anything in the manifests makes."""
    for manifest in [*manifests, *training_jobs(manifests)]:
        if manifest["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif manifest["kind"] == "InferenceService":
            predictor = manifest["spec"]["predictor"]
            yield {name: v for name, v in predictor.items() if name not in PREDICTOR}


# ------------------------------------------------------------------ valid


def test_lints(values: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_are_what_kubernetes_accepts(manifests: Manifests, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in [*manifests, *training_jobs(manifests)]:
        if manifest["kind"] not in CUSTOM:
            validator.validate(manifest, version, strict=True)


def test_the_validator_refuses(manifests: Manifests) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    (account,) = of_kind(manifests, "ServiceAccount")
    with pytest.raises(validator.ValidationError):
        validator.validate({**account, "automountToken": False}, "1.36", strict=True)


def test_a_kserve_predictor_is_a_pod(render: Render) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    values = yaml.safe_load((CHART / "ci" / "kserve-values.yaml").read_text())
    rendered = render(values)
    assert of_kind(rendered, "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget") == []
    for spec in pods(of_kind(rendered, "InferenceService")):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
        validator.validate(pod, "1.36", strict=True)


def test_custom_resources_have_known_fields(manifests: Manifests) -> None:
    for manifest in manifests:
        if manifest["kind"] in CUSTOM:
            assert set(manifest["spec"]) <= CUSTOM[manifest["kind"]]


def test_custom_resources_are_what_their_operators_accept(manifests: Manifests) -> None:
    packages = [f"@kubernetes-models/{name}" for name in MODEL_PACKAGES.values()]
    if shutil.which("node") is None or not MODELS.exists():
        command = f"npm install --prefix {MODELS.relative_to(ROOT)} {' '.join(packages)}"
        pytest.skip(f"needs node and: {command}")
    cases = []
    for manifest in manifests:
        group, _, version = manifest["apiVersion"].partition("/")
        if group in MODEL_PACKAGES:
            folder = MODELS / "node_modules" / "@kubernetes-models" / MODEL_PACKAGES[group]
            cases.append((str(folder / group / version / f"{manifest['kind']}.js"), manifest))
    validated(cases)
    for file, manifest in cases:
        with pytest.raises(AssertionError):
            validated([(file, {**manifest, "spec": 1})])


def validated(cases: list[tuple[str, dict[str, Any]]]) -> None:
    done = subprocess.run(
        ["node", "--input-type=module", "-e", VALIDATE],
        input=json.dumps(cases),
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_names_are_unique(manifests: Manifests) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))


def test_long_names_stay_valid(render: Render) -> None:
    for manifest in render({"config": {"source": SOURCE}, "fullnameOverride": "x" * 80}):
        assert len(manifest["metadata"]["name"]) <= 63


# ------------------------------------------------------------------ strict


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"server": {"replica": 3}}, "'replica' not allowed"),
        ({"mode": "apat"}, "'/mode'"),
        ({"servers": {}}, "'servers' not allowed"),
        ({"config": {"polcy": {}}}, "'polcy' not allowed"),
        ({"config": {"gate": {"alpa": 0.1}}}, "'alpa' not allowed"),
        ({"config": {"gate": {"alpha": "often"}}}, "'/config/gate/alpha'"),
        ({"server": {"image": {"digest": "sha256:1"}}}, "'/server/image/digest'"),
        # What the chart sets itself, and secrets, have no place in config.
        ({"config": {"server": {"port": 1}}}, "'port' not allowed"),
        ({"config": {"registry": {"path": "/x"}}}, "'path' not allowed"),
        ({"config": {"checkpoint": {"store": "registry"}}}, "'store' not allowed"),
        # Several daemons must be told to share.
        ({"daemon": {"replicas": 2}}, "missing property 'sharing'"),
        ({"daemon": {"keda": {"maxReplicas": 2}}}, "missing property 'sharing'"),
        (
            {"daemon": {"replicas": 2}, "config": {"sharing": {"enabled": False}}},
            "'/config/sharing/enabled': value must be true",
        ),
        (
            {"config": {"source": {"kind": "kafka", "topic": "t", "sasl_password": "s"}}},
            "'sasl_password' not allowed",
        ),
        (
            {"config": {"source": {"kind": "kafka", "schema_registry": {"password": "s"}}}},
            "'password' not allowed",
        ),
        (
            {"config": {"server": {"prediction_log": LOG | {"sasl_password": "s"}}}},
            "'sasl_password' not allowed",
        ),
        ({"server": {"traces": {"endpoint": "collector:4317"}}}, "'/server/traces/endpoint'"),
    ],
)
def test_the_schema_refuses(render: Render, values: dict[str, Any], complaint: str) -> None:
    import helm_python

    values = {"config": {"source": SOURCE} | values.get("config", {})} | values
    with pytest.raises(helm_python.HelmValuesError) as error:
        render(values)
    assert complaint in str(error.value)


def test_the_schema_lets_globals_of_a_parent_pass(render: Render) -> None:
    assert render({"config": {"source": SOURCE}, "global": {"anything": {"at": "all"}}})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"config": {}}, "config.source is missing"),
        (
            {"server": {"predictionLog": {"saslSecret": {"name": "s"}}}},
            "config.server.prediction_log, which is missing",
        ),
        ({"server": {"autoscaling": {"enabled": True}}}, "server.autoscaling needs mode: apart"),
        ({"server": {"kserve": {"enabled": True}}}, "server.kserve needs mode: apart"),
        ({"registry": {"existingClaim": "c"}}, "registry.existingClaim needs mode: apart"),
        ({"registry": {"s3": {"url": "s3://b/p"}}}, "registry.s3 needs mode: apart"),
        (
            {"mode": "apart", "registry": {"s3": {"url": "s3://b/p"}, "existingClaim": "c"}},
            "two places for one registry",
        ),
        ({"daemon": {"keda": {"enabled": True}}}, "daemon.keda needs mode: apart"),
        (
            {"daemon": {"persistence": {"enabled": False}}},
            "daemon.persistence.enabled: false needs mode: apart",
        ),
        (
            {"mode": "apart", "daemon": {"persistence": {"enabled": False}}},
            "no place for a file of dead letters",
        ),
        (
            {
                "mode": "apart",
                "daemon": {"persistence": {"enabled": False}},
                "config": {
                    "source": SOURCE,
                    "dead_letters": {"kind": "none"},
                    "checkpoint": {"ledger": True},
                },
            },
            "config.checkpoint.ledger is a file",
        ),
        (
            {
                "daemon": {"replicas": 2},
                "config": {"source": SOURCE, "sharing": {"enabled": True}},
            },
            "several daemons need mode: apart",
        ),
        (
            {"mode": "apart", "daemon": {"keda": {"enabled": True}}},
            "daemon.keda needs config.source.kind: kafka",
        ),
        (
            {
                "mode": "apart",
                "server": {"kserve": {"enabled": True}},
                "monitoring": {"scrape": "ServiceMonitor"},
            },
            "server.kserve needs monitoring.scrape: PodMonitor",
        ),
        (
            {"config": {"source": SOURCE, "checkpoint": {"stop_seconds": 58}}},
            "daemon.terminationGracePeriodSeconds must be 5 more than config.checkpoint",
        ),
        (
            {"mode": "apart", "server": {"kserve": {"enabled": True}, "tlsSecret": "cert"}},
            "server.tlsSecret does not go with server.kserve",
        ),
        (
            {"mode": "apart", "server": {"kserve": {"enabled": True}, "grpc": True}},
            "server.grpc does not go with server.kserve",
        ),
        (
            {
                "mode": "apart",
                "server": {"autoscaling": {"enabled": True, "cpu": 0, "queueItems": 0}},
            },
            "server.autoscaling needs cpu or queueItems",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(
    render: Render, values: dict[str, Any], complaint: str
) -> None:
    import helm_python

    with pytest.raises(helm_python.HelmRenderError, match=complaint):
        render({"config": {"source": SOURCE}} | values)


# ------------------------------------------------------------------ true to the code


def test_the_configuration_is_one_that_driftd_accepts(manifests: Manifests, tmp_path: Path) -> None:
    data = next(m["data"] for m in of_kind(manifests, "ConfigMap") if "driftd.yaml" in m["data"])
    (tmp_path / "driftd.yaml").write_text(data["driftd.yaml"])
    (tmp_path / "server.yaml").write_text(data["server.yaml"])
    (daemon,) = of_kind(manifests, "StatefulSet")
    config = load_config(tmp_path / "driftd.yaml", environment(daemon, 0))
    assert load_operating(tmp_path / "server.yaml", {}).server == config.server
    # One name on all metrics, so that one dashboard shows daemon and server.
    assert config.server.name == config.name
    assert (config.http.host, config.server.host) == ("0.0.0.0", "0.0.0.0")


def environment(daemon: dict[str, Any], number: int) -> dict[str, str]:
    """What the chart sets of driftd's variables in the pod of this number."""
    name = f"{daemon['metadata']['name']}-{number}"
    found: dict[str, str] = {}
    for entry in daemon["spec"]["template"]["spec"]["containers"][0]["env"]:
        if "valueFrom" in entry:
            assert entry["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            found[entry["name"]] = name
        else:
            value = entry["value"]
            for before, known in found.items():
                value = value.replace(f"$({before})", known)
            found[entry["name"]] = value
    return {name: value for name, value in found.items() if name.startswith("DRIFTD_")}


def test_keys_come_from_secrets_and_servers_see_no_private_one(render: Render) -> None:
    signing = {"privateSecret": {"name": "mine"}, "publicSecret": {"name": "ours", "keys": ["a"]}}
    for mode in ("together", "apart"):
        rendered = render({"mode": mode, "config": {"source": SOURCE}, "signing": signing})
        data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
        daemon, server = (
            yaml.safe_load(data[f"{n}.yaml"])["registry"] for n in ("driftd", "server")
        )
        assert daemon["signing_key"] == "/etc/driftd/signing/key"
        assert "signing_key" not in server
        assert daemon["trusted_keys"] == server["trusted_keys"] == ["/etc/driftd/trusted/a"]
        for spec in pods(of_kind(rendered, "StatefulSet", "Deployment")):
            secrets = {
                v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v
            }
            for container in spec["containers"]:
                mounted = {mount["name"] for mount in container["volumeMounts"]} & set(secrets)
                named = {"ours", "mine"} if container["name"] == "daemon" else {"ours"}
                assert {secrets[name] for name in mounted} == named


def test_the_server_s_tokens_and_certificate_come_from_secrets(render: Render) -> None:
    server = {"tokensSecret": {"name": "ours", "key": "shop"}, "tlsSecret": "cert"}
    for mode in ("together", "apart"):
        rendered = render({"mode": mode, "config": {"source": SOURCE}, "server": server})
        data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "server.yaml" in m["data"])
        settings = yaml.safe_load(data["server.yaml"])["server"]
        files = {settings["access"]["tokens"], *settings["tls"].values()}
        found = 0
        for spec in pods(of_kind(rendered, "StatefulSet", "Deployment")):
            volumes = {v["name"]: v for v in spec["volumes"]}
            for container in spec["containers"]:
                folders = {
                    m["mountPath"]: volumes[m["name"]]["secret"]["secretName"]
                    for m in container["volumeMounts"]
                    if "secret" in volumes.get(m["name"], {})
                }
                if container["args"] == ["serve"]:
                    found += 1
                    assert {folders[str(Path(file).parent)] for file in files} == {"ours", "cert"}
                    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
                else:
                    assert not folders
            for volume in volumes.values():
                assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440
        assert found == 1


def test_the_prediction_log_s_secrets_are_files_of_the_server(render: Render) -> None:
    secrets = {
        "saslSecret": {"name": "log-user", "key": "pass"},
        "tlsSecret": {"name": "log-ca", "client": True},
    }
    config = {"source": SOURCE, "server": {"prediction_log": LOG}}
    for mode in ("together", "apart"):
        values = {"mode": mode, "config": config, "server": {"predictionLog": secrets}}
        rendered = render(values)
        data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "server.yaml" in m["data"])
        log = PredictionLogConfig.model_validate(
            yaml.safe_load(data["server.yaml"])["server"]["prediction_log"]
        )
        assert (log.topic, log.sasl_password) == ("answers", None)
        for spec in pods(of_kind(rendered, "StatefulSet", "Deployment")):
            volumes = {v["name"]: v["secret"] for v in spec["volumes"] if "secret" in v}
            for container in spec["containers"]:
                folders = {
                    m["mountPath"]: volumes[m["name"]]["secretName"]
                    for m in container["volumeMounts"]
                    if m["name"] in volumes
                }
                if container["args"] != ["serve"]:
                    assert not folders
                    continue
                files = (log.sasl_password_file, log.tls_ca_file, log.tls_cert_file)
                found = [folders[str(file.parent)] for file in files if file]
                assert found == ["log-user", "log-ca", "log-ca"]
                assert volumes["log-sasl"]["items"] == [{"key": "pass", "path": "password"}]
                assert {v["defaultMode"] for v in volumes.values()} == {0o440}


def test_servers_reach_what_they_are_told_to_write_to(render: Render) -> None:
    def reached(**values: Any) -> list[int]:
        rendered = render({"mode": "apart", "config": {"source": SOURCE}} | values)
        (policy,) = (
            m
            for m in of_kind(rendered, "NetworkPolicy")
            if m["metadata"]["name"].endswith("-server")
        )
        return [p["port"] for e in policy["spec"].get("egress", ()) for p in e["ports"]]

    assert reached() == []
    logging = {"source": SOURCE, "server": {"prediction_log": LOG}}
    assert reached(config=logging) == [53, 53, 9092, 9093, 9094]
    traces = {"server": {"traces": {"endpoint": "http://collector.tracing:4318"}}}
    assert reached(**traces) == [53, 53, 4318]
    (spec,) = pods(of_kind(render({"config": {"source": SOURCE}} | traces), "StatefulSet"))
    (server,) = (c for c in spec["containers"] if c["args"] == ["serve"])
    environment = {e["name"]: e.get("value") for e in server["env"]}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.tracing:4318"
    assert environment["OTEL_SERVICE_NAME"] == "driftd"


def test_the_daemon_s_tokens_and_certificate_come_from_secrets(render: Render) -> None:
    daemon = {"tokensSecret": {"name": "ours", "key": "ops"}, "tlsSecret": "cert"}
    for mode in ("together", "apart"):
        policy = {"monitoring": [{"podSelector": {}}], "operators": [{"namespaceSelector": {}}]}
        values = {"mode": mode, "config": {"source": SOURCE}, "daemon": daemon}
        rendered = render({**values, "networkPolicy": policy})
        data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
        settings = yaml.safe_load(data["driftd.yaml"])["http"]
        files = {settings["access"]["tokens"], *settings["tls"].values()}
        for spec in pods(of_kind(rendered, "StatefulSet", "Deployment")):
            secrets = {v["name"]: v["secret"] for v in spec["volumes"] if "secret" in v}
            assert all(secret["defaultMode"] == 0o440 for secret in secrets.values())
            for container in spec["containers"]:
                folders = {
                    m["mountPath"]: secrets[m["name"]]["secretName"]
                    for m in container["volumeMounts"]
                    if m["name"] in secrets
                }
                if container["name"] == "daemon":
                    assert {folders[str(Path(file).parent)] for file in files} == {"ours", "cert"}
                    assert container["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"
                else:
                    assert not folders
        service = next(
            s for s in of_kind(rendered, "Service") if s["metadata"]["name"].endswith("-daemon")
        )
        # By these `driftd --context` finds it, and how to speak to it.
        assert service["metadata"]["labels"]["app.kubernetes.io/component"] == "daemon"
        assert service["metadata"]["labels"]["app.kubernetes.io/instance"] == "driftd"
        (port,) = service["spec"]["ports"]
        assert (port["name"], port["appProtocol"]) == ("daemon", "https")
        (rule, *_) = next(
            p["spec"]["ingress"]
            for p in of_kind(rendered, "NetworkPolicy")
            if p["metadata"]["name"].endswith("-daemon")
        )
        assert {"namespaceSelector": {}} in rule["from"]


def test_ports_and_probes_are_those_of_the_code(manifests: Manifests, tmp_path: Path) -> None:
    for spec in pods(of_kind(manifests, "StatefulSet", "Deployment", "InferenceService")):
        for container in spec["containers"]:
            ports = {p["name"]: p["containerPort"] for p in container["ports"]}
            assert ports in ({"daemon": 8081}, {"http": 8080}, {"http": 8080, "grpc": 8001})
            daemon = (ROOT / "daemon" / "api.py").read_text()
            server = {operation.path for operation in OPERATIONS}
            for name, probe in container.items():
                if name.endswith("Probe"):
                    path = probe["httpGet"]["path"]
                    assert f'Route("{path}"' in daemon if "daemon" in ports else path in server
                    assert probe["httpGet"]["port"] in ports


def test_a_server_may_drain_before_it_is_killed(manifests: Manifests) -> None:
    data = next(m["data"] for m in of_kind(manifests, "ConfigMap") if "server.yaml" in m["data"])
    server = yaml.safe_load(data["server.yaml"])["server"]
    for manifest in of_kind(manifests, "Deployment", "InferenceService"):
        (spec,) = pods([manifest])
        needed = server["notice_seconds"] + server["drain_seconds"]
        assert spec["terminationGracePeriodSeconds"] >= needed + 5
    for deployment in of_kind(manifests, "Deployment"):
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_only_a_change_that_concerns_servers_restarts_them(render: Render) -> None:
    def checksums(config: dict[str, Any]) -> list[str]:
        rendered = render({"mode": "apart", "config": {"source": SOURCE, **config}})
        return [
            m["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for m in of_kind(rendered, "StatefulSet", "Deployment")
        ]

    daemon, server = checksums({})
    assert checksums({"gate": {"alpha": 0.01}})[0] != daemon
    assert checksums({"gate": {"alpha": 0.01}})[1] == server
    assert checksums({"server": {"max_items": 8}})[1] != server


# ------------------------------------------------------------------ safe


def test_pods_meet_the_restricted_standard(manifests: Manifests) -> None:
    found = list(pods(manifests))
    assert found
    for spec in found:
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", ()))
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= container["resources"].keys()


def test_the_only_rights_in_the_cluster_are_to_make_jobs(manifests: Manifests) -> None:
    kinds = {m["kind"] for m in manifests}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "Secret"}
    for role in of_kind(manifests, "Role"):
        (rule,) = role["rules"]
        assert (rule["apiGroups"], rule["resources"]) == (["batch"], ["jobs"])
    assert bool(of_kind(manifests, "Role", "RoleBinding")) == bool(training_jobs(manifests))
    # Only the daemon has the token, not a server beside it, nor what trains.
    for spec in pods(of_kind(manifests, "StatefulSet", "Deployment", "ConfigMap")):
        for container in spec["containers"]:
            mounted = "token" in {mount["name"] for mount in container["volumeMounts"]}
            makes_jobs = container["name"] == "daemon" and bool(training_jobs(manifests))
            assert mounted == makes_jobs


def test_a_job_trains_on_the_daemon_s_files_with_the_daemon_s_code(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
    rendered = render(values)
    (job,) = training_jobs(rendered)
    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    assert trainer["image"] == "registry.example.com/team/driftd-trainer:1.2-cuda"
    (daemon,) = pods(of_kind(rendered, "StatefulSet"))
    data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
    place = Path(yaml.safe_load(data["driftd.yaml"])["trainer"]["job"]["folder"])
    for spec in (daemon, job["spec"]["template"]["spec"]):
        (claim,) = (v for v in spec["volumes"] if v["name"] == "training")
        assert claim["persistentVolumeClaim"]["claimName"] == "orders-training"
        (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "training")
        assert place.is_relative_to(mount["mountPath"])
    bare = render({"config": {"source": SOURCE}, "training": {"job": {"enabled": True}}})
    (daemon,) = pods(of_kind(bare, "StatefulSet"))
    (job,) = training_jobs(bare)
    images = {job["spec"]["template"]["spec"]["containers"][0]["image"]}
    assert images == {c["image"] for c in daemon["containers"] if c["name"] == "daemon"}


def test_an_object_store_needs_no_claim_and_its_keys_come_from_a_secret(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "s3-values.yaml").read_text())
    rendered = render(values)
    assert of_kind(rendered, "PersistentVolumeClaim") == []
    data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
    for name in ("driftd.yaml", "server.yaml"):
        registry = yaml.safe_load(data[name])["registry"]
        assert registry["path"] == "s3://models/intents"
        assert registry["endpoint"] == "https://s3.example.com:9000"
    for spec in pods(of_kind(rendered, "StatefulSet", "Deployment")):
        (container,) = spec["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "driftd-s3"}}]
        (cache,) = (m for m in container["volumeMounts"] if m["name"] == "cache")
        assert cache["mountPath"] == registry["cache"]


def test_daemons_that_share_are_told_apart_by_their_pods(render: Render, tmp_path: Path) -> None:
    values = yaml.safe_load((CHART / "ci" / "shared-values.yaml").read_text())
    values["daemon"]["keda"]["enabled"] = False
    rendered = render(values)
    (daemon,) = of_kind(rendered, "StatefulSet")
    assert daemon["spec"]["replicas"] == 3
    data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
    (tmp_path / "driftd.yaml").write_text(data["driftd.yaml"])
    configs = [load_config(tmp_path / "driftd.yaml", environment(daemon, n)) for n in range(3)]
    assert len({config.source.instance_id for config in configs}) == 3
    assert len({config.trainer.job.folder for config in configs}) == 3
    (budget,) = (
        m
        for m in of_kind(rendered, "PodDisruptionBudget")
        if m["metadata"]["name"].endswith("-daemon")
    )
    labels = daemon["spec"]["template"]["metadata"]["labels"].items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    for spread in daemon["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels


def test_a_daemon_without_a_volume_keeps_its_state_beside_the_registry(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "shared-values.yaml").read_text())
    for kept in (False, True):
        values["daemon"]["persistence"]["enabled"] = kept
        rendered = render(values)
        (daemon,) = of_kind(rendered, "StatefulSet")
        data = next(m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"])
        store = yaml.safe_load(data["driftd.yaml"])["checkpoint"]["store"]
        volumes = {v["name"]: v for v in daemon["spec"]["template"]["spec"]["volumes"]}
        claims = [c["metadata"]["name"] for c in daemon["spec"].get("volumeClaimTemplates", ())]
        if kept:
            assert (store, claims, "data" in volumes) == ("folder", ["data"], False)
        else:
            assert (store, claims) == ("registry", [])
            assert volumes["data"]["emptyDir"] == {"sizeLimit": "10Gi"}


def test_secrets_are_files_by_reference(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "production-values.yaml").read_text())
    (spec,) = pods(of_kind(render(values), "StatefulSet"))
    secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    assert secrets == {"sasl": "driftd-kafka", "tls": "kafka-ca"}
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert mounts["sasl"] == "/etc/driftd/sasl"


def test_servers_cannot_write_what_they_serve(manifests: Manifests) -> None:
    for spec in pods(of_kind(manifests, "StatefulSet", "Deployment", "InferenceService")):
        for container in spec["containers"]:
            if container["args"] == ["serve"]:
                writable = {
                    m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")
                }
                # Copies of what lies in an object store are checked like the originals.
                assert writable in (
                    {"/tmp", "/var/lib/driftd/registry/traffic"},
                    {"/tmp", "/var/cache/driftd"},
                )


def test_every_pod_has_a_network_policy(manifests: Manifests) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    for manifest in of_kind(manifests, "StatefulSet", "Deployment"):
        labels = manifest["spec"]["template"]["metadata"]["labels"].items()
        selected = [
            p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels
        ]
        assert len(selected) == 1
        assert selected[0]["spec"]["policyTypes"] == ["Ingress", "Egress"]
        if manifest["kind"] == "Deployment":
            ports = [p["port"] for e in selected[0]["spec"].get("egress", ()) for p in e["ports"]]
            assert ports in ([], [53, 53, 9000], [53, 53, 9092, 9093, 9094, 4318])
    for job in training_jobs(manifests):
        labels = job["spec"]["template"]["metadata"]["labels"].items()
        (policy,) = (
            p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels
        )
        assert policy["spec"].keys() == {"podSelector", "policyTypes"}


def test_a_daemon_reaches_its_schema_registry(render: Render) -> None:
    kafka = {"kind": "kafka", "bootstrap_servers": "b:9092", "topic": "t", "format": "avro"}
    for url, port in (("https://s:8085", 8085), ("http://s/x", 80), ("https://s.example.com", 443)):
        rendered = render({"config": {"source": {**kafka, "schema_registry": {"url": url}}}})
        (policy,) = of_kind(rendered, "NetworkPolicy")
        assert {"ports": [{"port": port, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_one_daemon_unless_they_share_and_a_budget_that_never_blocks(manifests: Manifests) -> None:
    (daemon,) = of_kind(manifests, "StatefulSet")
    scaled = of_kind(manifests, "ScaledObject")
    assert daemon["spec"].get("replicas") == (None if scaled else 1)
    data = next(m["data"] for m in of_kind(manifests, "ConfigMap") if "driftd.yaml" in m["data"])
    if "sharing" not in yaml.safe_load(data["driftd.yaml"]):
        assert all(s["spec"]["maxReplicaCount"] == 1 for s in scaled)
        assert "DRIFTD_SOURCE__INSTANCE_ID" not in environment(daemon, 0)
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]


def test_services_lead_to_pods(manifests: Manifests) -> None:
    workloads = of_kind(manifests, "StatefulSet", "Deployment")
    for service in of_kind(manifests, "Service"):
        wanted = service["spec"]["selector"].items()
        ports = {
            port["name"]
            for w in workloads
            if wanted <= w["spec"]["template"]["metadata"]["labels"].items()
            for container in w["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports


def test_alerts_can_be_changed_and_left_out(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
    (rule,) = of_kind(render(values), "PrometheusRule")
    alerts = {r["alert"]: r for group in rule["spec"]["groups"] for r in group["rules"]}
    assert "DriftdHeld" not in alerts
    changed = alerts["DriftdIncidentOpen"]
    assert changed["for"] == "8h"
    assert changed["labels"] == {"severity": "critical", "team": "risk"}
    assert changed["expr"]
    for name, alert in alerts.items():
        page = alert["annotations"]["runbook_url"]
        assert page == f"https://wiki.example.com/runbooks/{name}.md"


def test_dashboards_arrive_whole(render: Render) -> None:
    values = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
    found = {
        name: json.loads(text)
        for m in of_kind(render(values), "ConfigMap")
        if m["metadata"]["labels"].get("dashboards") == "1"
        for name, text in m["data"].items()
    }
    files = (CHART / "files" / "dashboards").glob("*.json")
    assert found == {f"driftd-{f.name}": json.loads(f.read_text()) for f in files}


# ------------------------------------------------------------------ images and compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_compose_fits_together(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        if build := service.get("build"):
            assert (ROOT / build["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            place = volume.split(":")[0]
            if place.startswith("."):
                assert (ROOT / place).exists()
            else:
                assert place in compose["volumes"]


def test_compose_runs_a_configuration_that_driftd_accepts(compose: dict[str, Any]) -> None:
    config = load_config(ROOT / "docker" / "compose" / "driftd.yaml", {})
    assert config.server.name == config.name
    assert (
        f"127.0.0.1:{config.http.port}:{config.http.port}" in compose["services"]["daemon"]["ports"]
    )
    topics = compose["services"]["topics"]["command"]
    assert f"--topic={config.source.topic}" in topics
    scraped = yaml.safe_load((ROOT / "docker" / "compose" / "prometheus.yaml").read_text())
    (targets,) = (s["targets"] for s in scraped["scrape_configs"][0]["static_configs"])
    assert targets == [f"daemon:{config.http.port}", f"server:{config.server.port}"]


def test_images_run_the_chart_s_user_and_the_right_install(render: Render) -> None:
    (daemon,) = of_kind(render({"config": {"source": SOURCE}}), "StatefulSet")
    user = daemon["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    for part, wanted in (
        ("server", '"/source[grpc,log,otel,signing,s3]"'),
        ("daemon", '"/source[daemon,avro,signing,s3]"'),
    ):
        text = (ROOT / "docker" / f"{part}.Dockerfile").read_text()
        assert f"USER {user}:{user}" in text
        installs = re.findall(r"pip install [^\n]*?(\S*/source\S*)", text)
        assert installs == [wanted]
        ignored = (ROOT / "docker" / f"{part}.Dockerfile.dockerignore").read_text().splitlines()
        rooms = {line[1:] for line in ignored if line.startswith("!")}
        assert {"daemon", "deploy", "drift", "learn", "registry", "pyproject.toml"} <= rooms
