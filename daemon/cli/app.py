"""The group of commands; turns the rooms' errors into one line and an exit code.

Exit codes are for scripts and do not change: see `EXIT_CODES`. An error that has no place there
is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
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
    "export-mlflow": "exchange",
    "import-mlflow": "exchange",
}


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
def driftd() -> None:
    """Keeps a model true while its data drifts.

    \b
    Start:    driftd init, edit driftd.yaml, driftd check, driftd up
    Operate:  driftd status, driftd versions, driftd rollback --reason "..."

    The operators' commands act on the registry: they work from any process that reaches its
    folder, whether or not the daemon runs. Settings come from ./driftd.yaml, or the file that -c
    or DRIFTD_CONFIG names.
    """


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
    click.echo(f"driftd: {message}", err=True)
    return code
