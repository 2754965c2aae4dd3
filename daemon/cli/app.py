"""The group of commands; turns the rooms' errors into one line and an exit code.

Exit codes are for scripts and do not change: see `EXIT_CODES`. An error that has no place there
is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

OK, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """\
Exit codes:

\b
  0    done
  1    refused or failed: pinned, withdrawn, port in use, disk full, crashed
  2    wrong usage, or the configuration has problems
  3    not found or not reachable: no such version, no registry, no broker
  130  interrupted from the keyboard"""

# Packages of the extra `daemon`, by the name they are imported under.
TRAINING_EXTRA = ("kafka", "onnx", "peft", "river", "scipy", "torch", "transformers")

# In the order of the help page; each command's module is imported when it is needed.
COMMANDS = {
    "init": "setup",
    "check": "setup",
    "doctor": "doctor",
    "run": "processes",
    "serve": "processes",
    "up": "processes",
    "status": "status",
    "versions": "versions",
    "show": "versions",
    "diff": "versions",
    "verify": "keys",
    "promote": "moves",
    "rollback": "moves",
    "route": "moves",
    "pin": "moves",
    "unpin": "moves",
    "pause": "moves",
    "resume": "moves",
    "refresh": "moves",
    "quarantine": "moves",
    "journal": "journal",
    "explain": "explain",
    "replay": "replay",
    "keygen": "keys",
    "export": "exchange",
    "export-mlflow": "exchange",
    "import-mlflow": "exchange",
}


# Those that a daemon elsewhere carries out.
REMOTE = frozenset(
    {
        *("status", "versions", "show", "diff", "verify", "journal", "explain", "quarantine"),
        *("promote", "rollback", "pin", "unpin", "pause", "resume", "refresh"),
    }
)


class Commands(click.Group):
    """Looks commands up by name, so that `driftd status` imports no training code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order an operator meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"daemon.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a typo."""
        import difflib

        close = difflib.get_close_matches(args[0], COMMANDS, n=1) if args else []
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)


def _release() -> str:
    try:
        return version("driftd")
    except PackageNotFoundError:
        return "unknown"


@click.command(
    cls=Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(_release(), prog_name="driftd", message="%(prog)s %(version)s")
@click.option(
    "--url",
    envvar="DRIFTD_URL",
    show_envvar=True,
    help="A daemon elsewhere, such as https://HOST:8081: its control API carries the command out.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="DRIFTD_TOKEN_FILE",
    show_envvar=True,
    help="File with the token for it; else DRIFTD_TOKEN holds the token.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    envvar="DRIFTD_CA_FILE",
    show_envvar=True,
    help="Certificate authority (PEM) of its TLS; else the system's.",
)
@click.option(
    "--cert-file",
    type=click.Path(path_type=Path),
    envvar="DRIFTD_CERT_FILE",
    show_envvar=True,
    help="Your certificate and key (PEM, one file), where it asks for one.",
)
@click.option("--context", metavar="NAME", help="kubectl's context: the daemon is in that cluster.")
@click.option("--namespace", metavar="NAME", help="The daemon's namespace there.")
@click.option("--release", metavar="NAME", help="Its Helm release, where there are several.")
@click.pass_context
def driftd(
    ctx: click.Context,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    cert_file: Path | None,
    context: str | None,
    namespace: str | None,
    release: str | None,
) -> None:
    """Keeps a model true while its data drifts.

    \b
    Start:    driftd init, edit driftd.yaml, driftd check, driftd up
    Operate:  driftd status, driftd versions, driftd rollback --reason "..."

    The operators' commands act on the registry: they work from any process that reaches its
    folder, whether or not the daemon runs. Settings come from ./driftd.yaml, or the file that -c
    or DRIFTD_CONFIG names. With --url they go to a daemon elsewhere, over HTTP; with --context,
    --namespace or --release to one in a Kubernetes cluster, through kubectl.

    \b
    Elsewhere:  driftd --url https://driftd.shop:8081 --token-file ops.token status
                driftd --context production --namespace ml rollback --reason "..."
    """
    from daemon.cli.options import Elsewhere

    in_cluster = any(given is not None for given in (context, namespace, release))
    named = ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE
    if in_cluster and named:
        raise click.UsageError("Give either --url, or --context, --namespace and --release.")
    explicit = in_cluster or named
    if explicit and ctx.invoked_subcommand not in REMOTE:
        raise click.UsageError(f"`driftd {ctx.invoked_subcommand}` works on this machine only.")
    if in_cluster or url:
        where = None if in_cluster else url
        files = (token_file, ca_file, cert_file)
        ctx.obj = Elsewhere(where, *files, context, namespace, release, explicit)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        result = driftd.main(args=arguments, prog_name="driftd", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing more can be written to it.
        sys.stdout = None
        return OK
    except Exception as error:
        code = _explain(error)
        if code is None:
            raise
        return code
    return result if isinstance(result, int) else OK


def _explain(error: Exception) -> int | None:
    """Print an error that was expected to happen some day; its exit code, None for a bug."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_EXTRA:
            return None
        return _fail(REFUSED, f'{package} is not installed: pip install "driftd[daemon]"')
    from daemon.config_reading import ConfigError

    if isinstance(error, ConfigError):
        for problem in error.problems:
            click.echo(str(problem), err=True)
        return USAGE
    import registry

    if isinstance(error, registry.NotFound):
        return _fail(UNREACHABLE, str(error))
    # These rooms' errors exist only once their modules were imported.
    known = [registry.RegistryError, OSError]
    for module, name in (
        ("deploy.errors", "DeployError"),
        ("daemon.sources.source", "SourceError"),
        ("daemon.checkpoint", "CheckpointError"),
        ("daemon.dead_letters", "DeadLetterError"),
        ("daemon.kubernetes", "KubernetesError"),
    ):
        if module in sys.modules:
            known.append(getattr(sys.modules[module], name))
    return _fail(REFUSED, _words(error)) if isinstance(error, tuple(known)) else None


def _words(error: Any) -> str:
    """The message; an OSError of the system as ``file: what``."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _fail(code: int, message: str) -> int:
    logs = sys.modules.get("daemon.logs")
    if logs is not None and logs.as_json():
        logging.getLogger("driftd").error("%s", message)
    else:
        click.echo(f"driftd: {message}", err=True)
    return code
