"""``driftd init`` and ``check``: a configuration to start from, and what is wrong with one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.app import OK, REFUSED, UNREACHABLE, USAGE
from daemon.cli.options import DEFAULT_CONFIG, config_option, json_option
from daemon.cli.output import print_json
from daemon.config_reading import ConfigError, Problem

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.inference import Inferred
    from registry import RegistryConfig


@click.command()
@click.option("--task", type=click.Choice(["text", "tabular"]), default="text", show_default=True)
@click.option(
    "--source", type=click.Choice(["kafka", "file", "stdin"]), default="kafka", show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The file to write.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def init(task: str, source: str, output: Path, force: bool) -> int:
    """Write a configuration in which every setting is explained.

    What must be decided is active; everything else stands as a comment, at its default.

    \b
    Examples:
      driftd init
      driftd init --task tabular --source file -o shop.yaml
    """
    from daemon.config_text import starter

    text = starter(task, source)  # type: ignore[arg-type]
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        click.echo(f"driftd: {output} exists: name another with -o, or use --force", err=True)
        return REFUSED
    named = "" if str(output) == DEFAULT_CONFIG else f" -c {output}"
    click.echo(f"Wrote {output}. Next: edit it, then `driftd check{named}`.")
    return OK


@click.command()
@config_option
@click.option(
    "--connect",
    is_flag=True,
    help="Also try what the configuration points to: broker, topic, files, registry, base model.",
)
@json_option
def check(config_path: Path, connect: bool, as_json: bool) -> int:
    """Say what is wrong with the configuration, line by line.

    Exits with 0 if it can be used, 2 if it has problems, and 3 if --connect finds that something
    it points to is not there. With --connect it also shows the features of a table that would be
    inferred from a file.

    \b
    Examples:
      driftd check
      driftd check -c shop.yaml --connect
    """
    from daemon.config import load_config

    try:
        config = load_config(config_path, os.environ)
    except ConfigError as error:
        return _report(error.problems, USAGE, as_json)
    missing = _try_out(config) if connect else []
    problems = [Problem(key, message, file=str(config_path)) for key, message in missing]
    if problems:
        return _report(problems, UNREACHABLE, as_json)
    features = _would_be(config) if connect else None
    if as_json:
        shown = {} if features is None else {"features": features.listed, "notes": features.notes}
        print_json({"ok": True, "problems": [], **shown})
        return OK
    click.echo(f"{config_path} is fine.")
    if config.model.table == "river":
        click.echo(
            "model.table is river: its versions have no ONNX graph and are not quantised; a server "
            'of them needs river (pip install "driftd[river]")'
        )
    if features is not None:
        click.echo(f"features: {features.sentence}")
        for note in features.notes:
            click.echo(f"  {note}")
    return OK


def _would_be(config: Config) -> Inferred | None:
    """The features that the daemon would infer from a file; None where it need not, or cannot."""
    from daemon.stream_config import FileSourceConfig
    from daemon.undeclared import look, undeclared

    source = config.source
    if not undeclared(config) or not isinstance(source, FileSourceConfig):
        return None
    if not source.path.stat().st_size:
        return None  # its events are still to come
    ends = source.model_copy(update={"follow": False})
    return look(config.model_copy(update={"source": ends}))


def _report(problems: list[Problem], code: int, as_json: bool) -> int:
    if as_json:
        rows = [
            {
                "key": problem.key,
                "message": problem.message,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "variable": problem.variable,
            }
            for problem in problems
        ]
        print_json({"ok": False, "problems": rows})
    else:
        for problem in problems:
            click.echo(str(problem), err=True)
        count = len(problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''}.", err=True)
    return code


def _try_out(config: Config) -> list[tuple[str, str]]:
    """What the configuration points to and is not there: (key, what)."""
    from daemon.stream_config import FileSourceConfig, KafkaSourceConfig

    found: list[tuple[str, str]] = []
    if isinstance(config.source, KafkaSourceConfig):
        if importlib.util.find_spec("kafka") is None:
            found.append(("source", 'kafka-python is not installed: pip install "driftd[daemon]"'))
        else:
            from daemon.sources.kafka import probe

            found += [("source", message) for message in probe(config.source, config.sharing.topic)]
    elif isinstance(config.source, FileSourceConfig) and not config.source.path.is_file():
        found.append(("source.path", f"there is no file {config.source.path}"))
    folders = [("checkpoint.path", config.checkpoint.path)]
    if config.registry.path.startswith("s3://"):
        found += _unreachable(config.registry)
        folders.append(("registry.cache", config.registry.cache.expanduser()))
    else:
        folders.append(("registry.path", Path(config.registry.path).expanduser()))
    for key, folder in folders:
        problem = _unwritable(folder)
        if problem:
            found.append((key, problem))
    base = config.model.base
    if config.model.task == "text":
        package = base.removeprefix("package:")
        if base.startswith("package:") and importlib.util.find_spec(package) is None:
            found.append(("model.base", f"the package {package} is not installed"))
        elif base.startswith((".", "/")) and not Path(base).is_dir():
            found.append(("model.base", f"there is no folder {base}"))
    return found


def _unreachable(config: RegistryConfig) -> list[tuple[str, str]]:
    from registry import NotFound, RegistryError, open_registry

    try:
        open_registry(config)
    except NotFound:
        pass  # the daemon makes it
    except RegistryError as error:
        return [("registry.path", str(error))]
    return []


def _unwritable(folder: Path) -> str | None:
    """Why a folder could not be written, or made; it is not made here."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    if not here.is_dir():
        return f"{here} is not a folder"
    return None if os.access(here, os.W_OK | os.X_OK) else f"not permitted to write in {here}"
