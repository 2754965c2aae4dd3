"""The server behind tokens and TLS: what is open, what is not, and what is said at the start."""

from __future__ import annotations

import logging
import socket
import ssl

import httpx
import pytest

from deploy.config import AccessConfig, ServerConfig, TlsConfig
from deploy.errors import AccessError
from deploy.listening import bind
from deploy.server import InferenceServer
from tests.certificates import Authority

TOKENS = {
    "shop": ("infer", "shop-7c1f2e90d3b84a55"),
    "grafana": ("read", "grafana-0d9c8b7a6f5e4d"),
    "alice": ("operate", "alice-44e0c7ab91f26d38"),
}
BODY = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["my card"]}]}


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("\n".join(f"{name} {scope} {t}" for name, (scope, t) in TOKENS.items()))
    file.chmod(0o600)
    return file


def bearer(name):
    return {"Authorization": f"Bearer {TOKENS[name][1]}"}


def test_scopes(serving, text, publish, tokens):
    publish(text, promote=True)
    model = "/v2/models/driftd"
    # method, path, body, and who may; anybody: None
    asked = [
        ("GET", "/v2/health/live", None, None),
        ("GET", "/v2/health/ready", None, None),
        ("GET", "/metrics", None, None),
        ("POST", "/predict", {"text": "my card"}, {"shop"}),
        ("POST", f"{model}/infer", BODY, {"shop"}),
        ("POST", f"{model}/versions/v0001/infer", BODY, {"shop"}),
        ("GET", "/", None, {"shop", "grafana", "alice"}),
        ("GET", "/v2", None, {"shop", "grafana", "alice"}),
        ("GET", model, None, {"shop", "grafana", "alice"}),
        ("GET", f"{model}/ready", None, {"shop", "grafana", "alice"}),
    ]
    with serving(access=AccessConfig(tokens=tokens)) as (_, client):
        for method, path, body, may in asked:
            nobody = client.request(method, path, json=body)
            assert nobody.status_code == (200 if may is None else 401), path
            for name in TOKENS:
                response = client.request(method, path, json=body, headers=bearer(name))
                assert response.status_code == (200 if may is None or name in may else 403), path
        # What exists is not told to those who may not ask; bodies of the refused are not read.
        assert client.get("/nothing").status_code == 401
        assert client.get("/v2/health/../models/driftd").status_code == 401
        assert client.get("/v2//health/ready").status_code == 401
        assert client.post("/predict", content=b"x" * 5_000_000).status_code == 401
        assert client.get("/nothing", headers=bearer("grafana")).status_code == 404
        exposed = client.get("/metrics").text
    assert 'errors_total{model="driftd",reason="unauthorized",version="none"} 11.0' in exposed
    assert 'errors_total{model="driftd",reason="forbidden",version="none"} 6.0' in exposed


def test_metrics_can_be_closed(serving, tokens):
    access = AccessConfig(tokens=tokens, open_metrics=False)
    with serving(ready=False, access=access) as (_, client):
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer("grafana")).status_code == 200


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def test_tls(serving, text, publish, authority):
    publish(text, promote=True)
    certificate, key = authority.issue("server")
    tls = TlsConfig(certificate=certificate, key=key)
    trusting = {"verify": ssl.create_default_context(cafile=authority.ca)}
    with serving(client=trusting, tls=tls) as (server, client):
        assert server.url.startswith("https://")
        assert client.post("/predict", json={"text": "my card"}).status_code == 200
        plain = server.url.replace("https://", "http://")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{plain}/v2/health/live")
        host, port = plain.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as rude:
            rude.sendall(b"\x16\x03\x01 no handshake")
        assert client.post("/predict", json={"text": "my card"}).status_code == 200


def test_client_certificates(serving, authority):
    certificate, key = authority.issue("server")
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(*authority.issue("client"))
    tls = TlsConfig(certificate=certificate, key=key, client_ca=authority.ca)
    with serving(ready=False, client={"verify": context}, tls=tls) as (server, client):
        assert client.get("/v2/health/live").status_code == 200
        with (
            httpx.Client(verify=ssl.create_default_context(cafile=authority.ca)) as stranger,
            pytest.raises(httpx.HTTPError),
        ):
            stranger.get(f"{server.url}/v2/health/live")


def test_unusable_files_end_the_start(tmp_path):
    for settings in (
        {"access": AccessConfig(tokens=tmp_path / "none")},
        {"tls": TlsConfig(certificate=tmp_path / "none", key=tmp_path / "none")},
    ):
        with pytest.raises(AccessError, match="none"):
            InferenceServer(ServerConfig(port=0, **settings), str(tmp_path))


def test_an_open_port_is_said(serving, caplog, monkeypatch):
    # Said by the setting, but never truly open while testing.
    monkeypatch.setattr("deploy.server.bind", lambda host, *more: bind("127.0.0.1", *more))
    with caplog.at_level(logging.WARNING), serving(ready=False, host="0.0.0.0") as (_, client):
        assert client.get("/v2/health/live").status_code == 200
    said = [record.message for record in caplog.records]
    assert "everyone who reaches 0.0.0.0 may use this port: set server.access.tokens" in said
