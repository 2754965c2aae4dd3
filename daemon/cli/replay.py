"""``driftd replay``: what would driftd have done with your data?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.options import config_option, json_option
from daemon.cli.output import clock, console, print_json, table

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.policy_config import Rung
    from daemon.replay import Progress
    from daemon.replay.measures import Comparison
    from daemon.replay.recording import Recording
    from daemon.stream_config import SourceConfig

POLICIES = "frozen,every:1000:head,at-alarm:head,online,ladder"


@click.command()
@config_option
@click.option(
    "--source",
    metavar="FILE|TOPIC",
    help="JSON lines, or a topic of the configured cluster.  [default: as configured]",
)
@click.option(
    "--policy",
    "policies",
    default=POLICIES,
    show_default=True,
    metavar="LIST",
    help="What to compare, with commas.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    default="replay",
    show_default=True,
    help="Folder for the report.",
)
@click.option("--resume", is_flag=True, help="Go on with what lies in that folder.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the configuration's.")
@click.option(
    "--label-delay",
    "delay",
    metavar="N|TIME",
    help="How long labels take: events (500), or 30min, 2h, 1d.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Events a second on the stream's clock, instead of the recorded times.",
)
@click.option(
    "--refresh-seconds",
    type=click.FloatRange(min=0),
    help="What a refresh takes on that clock, whatever its rung.  [default: by rung]",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Accuracy below which the model is of no use.  [default: 5 points below its first]",
)
@json_option
def replay(
    config_path: Path,
    source: str | None,
    policies: str,
    report: Path,
    resume: bool,
    seed: int | None,
    delay: str | None,
    rate: float | None,
    refresh_seconds: float | None,
    target: float | None,
    as_json: bool,
) -> None:
    """Compare what could have been done with recorded events.

    They run through the daemon's own loop, on the clock of the recording, once for each policy.

    Nothing outside the report's folder is touched: the configured registry, checkpoint and
    consumer group stay as they are. The policies are

    \b
      frozen            the first version, unchanged
      every:N[:RUNG]    retrain every N events and promote the result (RUNG: full, head, ...)
      at-alarm[:RUNG]   the same, at every alarm
      online            answer with the head that learns from every label
      river:MODEL       a model of river, such as river:adaptive-random-forest
      ladder            driftd, as configured
      NAME=CONFIG.yaml  driftd, as configured there

    \b
    Examples:
      driftd replay --source last-year.jsonl --report replay/
      driftd replay --policy frozen,ladder,careful=careful.yaml --label-delay 2h
      driftd replay --policy frozen,at-alarm,ladder --resume
    """
    from daemon.config import load_config
    from daemon.logs import set_up
    from daemon.policy_config import LADDER
    from daemon.replay import PolicyError, Replay, ReplayError, measure, parse, read, write
    from daemon.replay.recording import NO_DELAY, Delay
    from daemon.replay.training import NOMINAL_SECONDS
    from daemon.undeclared import look, undeclared, with_features

    config = load_config(config_path, os.environ)
    set_up(config.log.model_copy(update={"level": "error"}))
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    config = config.model_copy(update={"source": _source(config, source), **changes})
    if undeclared(config):
        config = with_features(config, look(config).features)
    seconds: Mapping[Rung, float] = NOMINAL_SECONDS
    if refresh_seconds is not None:
        seconds = dict.fromkeys(LADDER, refresh_seconds)
    try:
        late = Delay.parse(delay) if delay else NO_DELAY
        compared = parse(policies.split(","), config)
    except (PolicyError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    recording = read(config, rate)
    run = Replay(config, recording, compared, report / "work", late, seconds)
    try:
        run.prepare(resume=resume)
        with _Bar() as bar:
            outcomes = run.run(bar.show)
        found = measure(recording, outcomes, late, None if target is None else target / 100)
    except (ReplayError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    facts = _facts(config, recording, rate, delay, refresh_seconds)
    paths = write(found, facts, report)
    if as_json:
        from daemon.replay.report import document

        print_json(document(found, facts))
        return
    _show(found)
    click.echo("\n".join(f"written: {path}" for path in paths))


def _source(config: Config, named: str | None) -> SourceConfig:
    """The source that ``--source`` names: a file that exists, else a topic."""
    from daemon.stream_config import FileSourceConfig, KafkaSourceConfig

    source = config.source
    if named is not None and Path(named).is_file():
        return FileSourceConfig(kind="file", path=Path(named))
    if isinstance(source, KafkaSourceConfig):
        group = f"driftd-{config.name}-replay-{os.getpid()}"  # the daemon's own is left alone
        changes = {"group": group, "topic": named or source.topic, "instance_id": None}
        return source.model_copy(update={**changes, "start": "earliest"})
    if named is not None:
        raise click.UsageError(
            f"{named} is no file, and for a topic source.kind must be kafka in the configuration."
        )
    if not isinstance(source, FileSourceConfig):
        raise click.UsageError("Standard input cannot be replayed: name a file with --source.")
    return source.model_copy(update={"follow": False})


def _facts(
    config: Config,
    recording: Recording,
    rate: float | None,
    delay: str | None,
    refresh_seconds: float | None,
) -> dict[str, Any]:
    """What was replayed, for the report."""
    from daemon.replay.training import NOMINAL_SECONDS
    from daemon.stream_config import FileSourceConfig

    source = config.source
    name = source.path.name if isinstance(source, FileSourceConfig) else "a topic"
    name = getattr(source, "topic", name)
    by_rung = ", ".join(f"{rung} {seconds:g} s" for rung, seconds in NOMINAL_SECONDS.items())
    facts = {
        "source": name,
        "model": config.name,
        "events": len(recording),
        "records that were no events": recording.rejected,
        "first event": clock(float(recording.clock[0])),
        "last event": clock(float(recording.clock[-1])),
        "warm-up, in labelled events": config.bootstrap.warmup_events,
        "clock": "the recorded times" if rate is None else f"{rate:g} a second",
        "label delay": delay or "as recorded",
        "a refresh takes": by_rung if refresh_seconds is None else f"{refresh_seconds:g} s",
        "seed": config.seed,
        "not judged": "the gate's limit on latency, which depends on the machine",
    }
    return {key: value for key, value in facts.items() if value != ""}


def _show(found: Comparison) -> None:
    numbers = ("accuracy", "below target", "life", "refreshes", "promoted", "CPU-s", "avoided")
    listed = table("policy", *numbers, right=numbers)
    listed.columns[0].no_wrap = True
    for name, f in found.figures.items():
        listed.add_row(
            name,
            f"{100 * f['accuracy']:.2f} %",
            f"{100 * f['below_target']:.0f} %",
            "to the end" if f["useful_life"] is None else f"{f['useful_life']:,}",
            str(f["refreshes"]),
            str(f["promotions"]),
            f"{f['training_cpu_seconds']:,.1f}",
            "" if f["errors_avoided"] is None else f"{f['errors_avoided']:,}",
        )
    for name, accuracy in found.yardsticks.items():
        listed.add_row(name, f"{100 * accuracy:.2f} %", *[""] * 6)
    out = console()
    out.print(listed)
    out.print(f"target {100 * found.target:.1f} %: {found.target_reason}")


class _Bar:
    """Progress on standard error, with the time left for all policies."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Move the policy's bar."""
        from daemon.cli.output import span

        left = "" if progress.left is None else f"{span(progress.left)} left in all"
        if progress.policy not in self._tasks:
            task = self._bar.add_task(progress.policy, total=progress.events, left=left)
            self._tasks[progress.policy] = task
        task = self._tasks[progress.policy]
        self._bar.update(task, completed=progress.done, left=left)
