"""The commands on a daemon elsewhere: a real daemon process, over HTTP and through kubectl."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import app
from daemon.cli.remote import Client
from daemon.control import Order
from registry import NotFound, RegistryError
from tests.certificates import Authority
from tests.system.stack import ENVIRONMENT, Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

OPS, EYES = "ops-4f2d8b6c0a1e3d57", "eyes-9b7a5c3d1e0f2a4b"


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, table: Callable[..., list[bytes]]
) -> Iterator[Stack]:
    """A daemon that has a champion, with tokens on its port."""
    from examples.demo.broker import free_port

    folder = tmp_path_factory.mktemp("elsewhere")
    made = Stack(folder, free_port(), free_port())
    (folder / "tokens").write_text(f"alice operate {OPS}\neyes read {EYES}\n")
    (folder / "tokens").chmod(0o600)
    (folder / "ops.token").write_text(f"{OPS}\n")
    events = folder / "events.jsonl"
    events.write_bytes(b"\n".join(table(900, seed=1)) + b"\n")
    made.configure(
        {"kind": "file", "path": str(events), "follow": True},
        http={"port": made.http, "access": {"tokens": str(folder / "tokens")}},
    )
    made.start("run")
    made.wait(lambda: made.rows("promote") and get(made.http, "/health/ready")[0] == 200, 120)
    yield made
    for process in made.processes:
        process.stop()


class Said:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def driftd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Runs a command in an empty folder, with nothing set in the environment."""
    for name in list(os.environ):
        if name.startswith("DRIFTD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = app.run(list(arguments))
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def elsewhere(stack: Stack) -> list[str]:
    token = str(stack.folder / "ops.token")
    return ["--url", f"http://127.0.0.1:{stack.http}", "--token-file", token]


LOOKING = [
    ["versions"],
    ["versions", "--json"],
    ["versions", "-n", "1"],
    ["versions", "--at", "2999-01-01"],
    ["show", "champion"],
    ["show", "champion", "--json"],
    ["diff", "champion", "champion"],
    ["verify"],
    ["journal", "-n", "3"],
    ["journal", "--all", "--json"],
    ["journal", "--kind", "promote", "--since", "1"],
    ["show", "v0099"],
    ["explain"],
]


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
def test_looking_is_the_same_from_elsewhere(
    stack: Stack, driftd: Callable[..., Said], arguments: list[str]
) -> None:
    here = driftd(*arguments, "-c", str(stack.path))
    there = driftd(*elsewhere(stack), *arguments)
    # Ages move on between the two.
    plain = [re.sub(r"\d+ (s|min) ago", "AGO", said.out) for said in (here, there)]
    assert plain[0] == plain[1]
    assert (here.code, here.err) == (there.code, there.err)


def test_status_from_elsewhere(
    stack: Stack, driftd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_TOKEN", EYES)
    here, there = driftd("status", "-c", str(stack.path)), driftd(*elsewhere(stack), "status")
    for said in (here, there):
        assert "watching" in said.out or "learning what is normal" in said.out
        assert "not reachable" not in said.out
    assert [line.split()[:1] for line in here.out.splitlines()] == [
        line.split()[:1] for line in there.out.splitlines()
    ]
    monkeypatch.delenv("DRIFTD_TOKEN")
    assert "not reachable" in driftd("status", "-c", str(stack.path)).out


def test_orders_from_elsewhere_are_followed_by_the_daemon(
    stack: Stack, driftd: Callable[..., Said]
) -> None:
    said = driftd(*elsewhere(stack), "pin", "--reason", "looking at it")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Pinned: ")
    stack.wait(lambda: stack_status(stack)["pinned"])
    assert driftd(*elsewhere(stack), "unpin", "--reason", "looked").code == 0
    assert driftd(*elsewhere(stack), "pause", "--reason", "labels", "--json").code == 0
    assert driftd(*elsewhere(stack), "resume", "--reason", "mended").code == 0
    asked = driftd(*elsewhere(stack), "refresh", "--rung", "head", "--reason", "see")
    assert re.fullmatch(r"Asked for a refresh \(head\): request \S+\.\n", asked.out)
    stack.wait(lambda: stack.rows("refresh-started"))
    actors = {row["actor"] for kind in ("pin", "unpin", "pause") for row in stack.rows(kind)}
    assert len(actors) == 1
    assert re.fullmatch(r"alice \(.+@.+\)", actors.pop())
    refused = driftd(*elsewhere(stack), "rollback", "--to", "v0099", "--reason", "x")
    assert refused.code == 3
    assert "there is no version v0099" in refused.err
    assert driftd(*elsewhere(stack), "rollback").code == 2  # no reason given


def stack_status(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = Client(f"127.0.0.1:{stack.http}", token=EYES).ask("status", {})
    return found["daemon"] or {}


def test_the_environment_names_url_and_token(
    stack: Stack, driftd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_URL", f"http://127.0.0.1:{stack.http}")
    refused = driftd("versions")
    assert refused.code == 1
    assert "a token is needed" in refused.err
    monkeypatch.setenv("DRIFTD_TOKEN", EYES)
    assert "v0001" in driftd("versions").out
    refused = driftd("pause", "--reason", "x")
    assert refused.code == 1
    assert "lacks the scope 'operate'" in refused.err
    # What was said on the command line counts; what works here only does so.
    assert "v0001" in driftd("versions", "--registry", str(stack.folder / "registry")).out
    assert driftd("check", "-c", str(stack.path)).code == 0


def test_what_cannot_be_reached_or_makes_no_sense(
    stack: Stack, driftd: Callable[..., Said], tmp_path: Path
) -> None:
    away = driftd("--url", "http://127.0.0.1:1", "versions")
    assert away.code == 3
    assert away.err == "driftd: no daemon answers at http://127.0.0.1:1: Connection refused\n"
    assert driftd("--url", "ftp://x", "versions").code == 1
    assert "works on this machine only" in driftd("--url", "x", "check").err
    both = driftd("--url", "x", "--context", "c", "status")
    assert (both.code, "either --url" in both.err) == (2, True)
    assert driftd("--url", "x", "versions", "--registry", "y").code == 2
    lost = driftd("--url", "x", "--token-file", "nowhere", "versions")
    assert (lost.code, lost.err) == (1, "driftd: nowhere: No such file or directory\n")
    reproduce = driftd(*elsewhere(stack), "refresh", "--reproduce", "v0001")
    assert "where the registry lies only" in reproduce.err


def test_an_order_whose_answer_is_lost_is_sent_again_and_done_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(f"127.0.0.1:{stack.http}", token=OPS)
    exchange, lost = client._exchange, 0

    def losing(*arguments: Any) -> tuple[int, bytes]:
        nonlocal lost
        answer = exchange(*arguments)
        if lost < 2:
            lost += 1
            raise ConnectionResetError("cut")
        return answer

    monkeypatch.setattr(client, "_exchange", losing)
    before = len(stack.rows("pause"))
    found = client.order("pause", {}, Order("me", "a drill"))
    assert found["sentence"].startswith("Carried out before")
    assert found["paused"]["reason"] == "a drill"
    assert len(stack.rows("pause")) == before + 1
    client.order("resume", {}, Order("me", "over"))


def test_certificates_are_checked_under_the_name_of_the_service(
    stack: Stack, tmp_path: Path
) -> None:
    from daemon.api import ApiServer, Health, application
    from daemon.metrics import Metrics
    from daemon.policy_config import HttpConfig
    from registry import open_registry

    authority = Authority(tmp_path, "ours")
    certificate, key = authority.issue("daemon")
    tls = {"certificate": str(certificate), "key": str(key)}
    config = HttpConfig.model_validate({"port": 0, "tls": tls})
    registry = open_registry(stack.folder / "registry")
    server = ApiServer(application(Metrics("m"), Health(), dict, registry, config), config)
    server.start()
    try:
        named = Client(server.url, ca_file=authority.ca, server_name="localhost")
        assert named.ask("versions", {})
        with pytest.raises(NotFound, match=r"its certificate is not trusted .*--ca-file"):
            Client(server.url, ca_file=authority.ca, server_name="other.ml.svc").ask("status", {})
        with pytest.raises(NotFound, match="its certificate is not trusted"):
            Client(server.url).ask("status", {})
        with pytest.raises(RegistryError, match="cannot use the certificates in"):
            Client(server.url, ca_file=tmp_path / "none")
    finally:
        server.stop()


# ------------------------------------------------------------------ through kubectl

KUBECTL = """\
#!{python}
import json, os, socket, sys, threading
folder = {folder!r}
with open(folder + "/calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "get" in sys.argv:
    if os.path.exists(folder + "/refusal"):
        sys.exit(open(folder + "/refusal").read())
    print(open(folder + "/services.json").read())
    sys.exit()
with open(folder + "/pids", "a") as file:
    file.write(f"{{os.getpid()}}\\n")
if os.path.exists(folder + "/no-forward"):
    sys.exit("error: unable to forward port because pod is not running")
listener = socket.create_server(("127.0.0.1", 0))
print(f"Forwarding from 127.0.0.1:{{listener.getsockname()[1]}} -> 8081", flush=True)

def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass

while True:
    near, _ = listener.accept()
    print("Handling connection for 8081", flush=True)
    far = socket.create_connection(("127.0.0.1", {port}))
    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
"""


class Cluster:
    """A stand-in for kubectl on the PATH, and what was asked of it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        program = KUBECTL.format(python=sys.executable, folder=str(folder), port=port)
        (folder / "kubectl").write_text(program)
        (folder / "kubectl").chmod(0o755)
        self.serve("shop")

    def serve(self, *releases: str) -> None:
        services = [
            {
                "metadata": {
                    "name": f"{release}-driftd-daemon",
                    "namespace": "ml",
                    "labels": {"app.kubernetes.io/instance": release},
                },
                "spec": {"ports": [{"name": "daemon", "port": 8081}]},
            }
            for release in releases
        ]
        (self.folder / "services.json").write_text(json.dumps({"items": services}))

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def all_gone(self) -> bool:
        return not any(alive(pid) for pid in self.pids())


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def cluster(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DRIFTD_TOKEN", OPS)
    return Cluster(folder, stack.http)


def test_a_daemon_in_a_cluster_is_found_and_the_way_to_it_closed_again(
    driftd: Callable[..., Said], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_TOKEN", OPS)
    said = driftd("--context", "production", "--namespace", "ml", "status")
    assert said.code == 0, said.err
    assert "v0001" in said.out
    said = driftd("--context", "production", "--release", "shop", "pause", "--reason", "a drill")
    assert (said.code, said.out) == (0, "Paused: nothing is learned until resume.\n")
    assert driftd("--namespace", "ml", "resume", "--reason", "over").code == 0
    assert cluster.calls()[:3] == [
        ["--context", "production", "--namespace", "ml", "get", "services", "--selector",
         "app.kubernetes.io/component=daemon", "--output", "json"],
        ["--context", "production", "--namespace", "ml", "port-forward",
         "service/shop-driftd-daemon", ":8081"],
        ["--context", "production", "get", "services", "--selector",
         "app.kubernetes.io/component=daemon,app.kubernetes.io/instance=shop", "--output", "json"],
    ]  # fmt: skip
    assert len(cluster.pids()) == 3
    assert cluster.all_gone()


def test_a_refusal_ends_the_child_too(
    driftd: Callable[..., Said], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_TOKEN", EYES)
    assert driftd("--context", "x", "pause", "--reason", "x").code == 1
    assert len(cluster.pids()) == 1
    assert cluster.all_gone()


def test_what_kubectl_cannot_do_is_said(
    driftd: Callable[..., Said], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.serve()
    said = driftd("--context", "c", "--release", "x", "status")
    assert (said.code, "there is no daemon of release x" in said.err) == (3, True)
    cluster.serve("shop", "posts")
    said = driftd("--context", "c", "status")
    assert (said.code, "name one with --release (posts, shop)" in said.err) == (1, True)
    cluster.serve("shop")
    (cluster.folder / "no-forward").touch()
    said = driftd("--context", "c", "status")
    assert (said.code, "unable to forward port because pod is not running" in said.err) == (3, True)
    assert cluster.all_gone()
    (cluster.folder / "refusal").write_text('error: context "c" does not exist')
    said = driftd("--context", "c", "status")
    assert said.code == 3
    assert 'kubectl cannot list the Services: error: context "c" does not exist' in said.err
    monkeypatch.setenv("PATH", "/nowhere")
    said = driftd("--context", "c", "status")
    assert said.code == 3
    assert "kubectl is not on the PATH" in said.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_the_command_however_it_is_ended(
    cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", "--context", "c", "journal", "-f", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**ENVIRONMENT, "PATH": os.environ["PATH"], "DRIFTD_TOKEN": OPS},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["seq"]
        assert not cluster.all_gone()
        process.send_signal(number)
        process.wait(30)
        deadline = time.monotonic() + 30
        while not cluster.all_gone():
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_operating_elsewhere_needs_no_training_packages(stack: Stack) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        class Hook:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "kafka", "scipy", "river"):
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Hook())
        from daemon.cli import main
        main({[*elsewhere(stack), "status"]!r})
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
