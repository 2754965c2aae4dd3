"""The repository API: what the index says of each version, what is refused with which advice."""

from __future__ import annotations

import httpx
import pytest

import registry

INDEX = "/v2/repository/index"
MODEL = "/v2/repository/models/driftd"


def states(client, **asked):
    response = client.post(INDEX, json=asked)
    assert response.status_code == 200
    return {entry["version"]: (entry["state"], entry["reason"]) for entry in response.json()}


def load(client, **parameters):
    return client.post(f"{MODEL}/load", json={"parameters": parameters})


def test_the_index_tells_what_became_of_each_version(serving, text, publish, tmp_path, eventually):
    v1, v2, v3, v4 = (publish(text, seed) for seed in range(4))
    store = registry.open_registry(str(tmp_path / "registry"))
    for version in (v1, v3, v2):
        store.promote(version, actor="test", reason="a test")
    store.rollback(actor="test", reason="a test", to=v1)
    store.set_challenger(v4, actor="test", reason="a test")
    with serving() as (server, client):
        eventually(lambda: server.engine.lineup.champion.version == v1)
        found = states(client)
        assert list(found) == [v4, v3, v2, v1]
        assert found[v1] == ("READY", "champion")
        assert found[v2][0] == "UNAVAILABLE"
        assert "withdrawn" in found[v2][1]
        assert found[v4] == ("UNAVAILABLE", "challenger: the gate has not decided yet")
        assert all(state == "READY" for state, _ in states(client, ready=True).values())
        assert client.post(INDEX).status_code == 200
        for body in (b"[]", b"{", b'{"ready": 1}'):
            assert client.post(INDEX, content=body).status_code == 400


def test_load_and_unload_say_what_would(serving, text, publish):
    with serving(ready=False) as (server, client):
        response = load(client)
        assert response.status_code == 409
        assert "driftd promote" in response.json()["error"]
        assert states(client) == {}
        first, second = publish(text, promote=True), publish(text, seed=1)
        third = publish(text, seed=2, promote=True)
        for _ in range(1000):
            response = load(client)
            if response.status_code == 200 and server.engine.lineup.versions == (third, first):
                break
            assert response.status_code in (200, 503)
        assert states(client)[first] == ("READY", "kept warm")
        assert states(client)[second][1] == f"does not serve: `driftd promote {second}` lets it"
        assert load(client, version=third).json() == {}
        assert load(client, version=first).status_code == 200
        response = load(client, version=second)
        assert response.status_code == 409
        assert f"driftd promote {second}" in response.json()["error"]
        response = load(client, version="v0099")
        assert (response.status_code, "no version 'v0099'" in response.text) == (409, True)
        assert load(client, version=7).status_code == 400
        response = client.post(f"{MODEL}/unload")
        assert response.status_code == 409
        assert "driftd rollback" in response.json()["error"]
        for order in ("load", "unload"):
            response = client.post(f"/v2/repository/models/other/{order}")
            assert response.status_code == 404
        assert server.engine.lineup.versions == (third, first)


def test_while_it_is_loaded_and_while_the_registry_is_away(
    serving, text, publish, tmp_path, eventually
):
    version = publish(text, promote=True)
    graph = tmp_path / "registry" / "versions" / version / "model.int8.onnx"
    graph.chmod(0o644)
    graph.write_bytes(b"broken")
    with serving(ready=False) as (_, client):
        eventually(lambda: states(client)[version] == ("LOADING", "champion"))
        response = load(client)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        (tmp_path / "registry" / "state.json").write_text("{")
        assert client.post(INDEX).status_code == 503
        assert load(client).status_code == 503


@pytest.mark.parametrize("module", ["http", "grpc"])
def test_triton(module, serving, text, publish, eventually):
    client_module = pytest.importorskip(f"tritonclient.{module}")
    version = publish(text, promote=True)
    settings = {"grpc_port": 0} if module == "grpc" else {}
    with serving(**settings) as (server, _):
        url = httpx.URL(server.url)
        port = server.grpc_port if module == "grpc" else url.port
        client = client_module.InferenceServerClient(f"127.0.0.1:{port}")
        index = client.get_model_repository_index()
        (entry,) = index.models if module == "grpc" else index
        if module == "grpc":
            entry = {"name": entry.name, "version": entry.version, "state": entry.state}
        assert (entry["name"], entry["version"], entry["state"]) == ("driftd", version, "READY")
        client.load_model("driftd")
        with pytest.raises(client_module.InferenceServerException, match="driftd rollback"):
            client.unload_model("driftd")
        with pytest.raises(client_module.InferenceServerException, match="no model 'other'"):
            client.load_model("other")
        client.close()
