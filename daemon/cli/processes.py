"""``driftd run``, ``serve`` and ``up``: the processes that work."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from daemon.cli.app import TRAINING_EXTRA
from daemon.cli.options import config_option
from daemon.logs import set_up
from daemon.operating_config import load_operating

if TYPE_CHECKING:
    from deploy.config import ServerConfig


def _supervised(ctx: click.Context, parameter: click.Parameter, parent: int | None) -> None:
    """Under `driftd up`: end as on SIGTERM when the supervisor is gone, however it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, name="driftd-parent", daemon=True).start()


supervised_option = click.option(
    "--supervisor",
    type=int,
    hidden=True,
    expose_value=False,
    callback=_supervised,
)


@click.command()
@config_option
@supervised_option
def run(config_path: Path) -> None:
    """Run the daemon: watch for drift, repair the model.

    Ends in order on SIGTERM or Ctrl-C, within checkpoint.stop_seconds: the trainer is stopped and
    a checkpoint written. A source that ends (a file that is not followed, standard input) ends the
    daemon too. SIGHUP reads the configuration again; the journal says what changed.

    \b
    Examples:
      driftd run
      driftd run -c /etc/driftd/driftd.yaml
      zcat events.jsonl.gz | DRIFTD_SOURCE='{kind: stdin}' driftd run
    """
    missing = [name for name in TRAINING_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f'the daemon needs {", ".join(missing)}: pip install "driftd[daemon]"'
        )
    from daemon.config import load_config

    config = load_config(config_path, os.environ)
    set_up(config.log)
    from daemon import service

    service.run(config, lambda: load_config(config_path, os.environ))


@click.command()
@config_option
@supervised_option
@click.option("--crew", type=(str, int), hidden=True, help="Be one of several: folder, number.")
def serve(config_path: Path, crew: tuple[str, int] | None) -> int:
    """Serve the champion over HTTP and gRPC.

    By the Open Inference Protocol (V2), and simpler for people at POST /predict.

    Needs the base install only. Reads the sections registry, server and log; waits for a
    registry and a champion if there is none yet, and follows every promotion and rollback.
    With server.processes above 1 it starts that many, and starts again one that crashes.

    \b
    Examples:
      driftd serve
      DRIFTD_SERVER__HOST=0.0.0.0 driftd serve
    """
    config = load_operating(config_path, os.environ)
    set_up(config.log)
    if config.server.processes > 1 and crew is None:
        return _serve_by_several(config.server, config_path)
    from deploy import server
    from deploy.crew import Crew

    ours = None if crew is None else Crew(Path(crew[0]), crew[1])
    server.serve(config.server, config.registry, ours)
    return 0


def _serve_by_several(config: ServerConfig, config_path: Path) -> int:
    from daemon.up import Supervisor
    from deploy.listening import reserve

    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory(prefix="driftd-"))
        for key, port in (("PORT", config.port), ("GRPC_PORT", config.grpc_port)):
            if port is not None:
                taken = held.enter_context(reserve(config.host, port))
                os.environ[f"DRIFTD_SERVER__{key}"] = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "daemon.cli", "serve", "-c", str(config_path)]
        command += ["--supervisor", str(os.getpid()), "--crew", folder]
        return Supervisor(
            {f"server {index}": [*command, str(index)] for index in range(config.processes)},
            say=logging.getLogger("driftd.server").warning,
            drain_seconds=config.notice_seconds + config.drain_seconds + 5,
        ).run()


@click.command()
@config_option
def up(config_path: Path) -> int:
    """Run daemon and server together on this machine.

    Both are child processes: what they log (unless as JSON) is prefixed with their name, one that
    crashes is started again after a pause, and SIGTERM or Ctrl-C ends both in order. Exits with 1
    when one of them cannot be kept up.

    \b
    Examples:
      driftd up
      driftd up -c shop.yaml
    """
    from daemon.config import load_config
    from daemon.stream_config import StdinSourceConfig
    from daemon.up import Supervisor, check_ports, commands
    from registry import open_registry

    config = load_config(config_path, os.environ)
    if isinstance(config.source, StdinSourceConfig):
        raise click.UsageError(
            "A daemon that is started again cannot read standard input again: for source.kind"
            " stdin, use `driftd run` and `driftd serve`."
        )
    check_ports({"http": config.http, "server": config.server})
    open_registry(config.registry, create=True)
    set_up(config.log)
    return Supervisor(commands(config_path)).run()
