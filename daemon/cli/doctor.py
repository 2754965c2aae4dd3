"""``driftd doctor``: is everything there that the daemon needs, and what to do if not."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path

import click

from daemon.cli.app import OK, REFUSED, TRAINING_EXTRA, USAGE
from daemon.cli.options import config_option, json_option
from daemon.cli.output import print_json
from daemon.cli.status import ask
from daemon.config_reading import ConfigError

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@config_option
@json_option
def doctor(config_path: Path, as_json: bool) -> int:
    """Try out what the daemon rests on, and say what to do.

    Configuration, packages, checkpoints, the registry's storage (reading, writing,
    compare-and-swap, its clock), the champion (digests, signature, an answer), brokers, login,
    topics and their retention, clocks, disk, memory and cores. May run beside the daemon, and where
    the daemon would. Exits with 1 if anything fails, 2 if the configuration is wrong.

    \b
    Examples:
      driftd doctor
      driftd doctor --json | jq '.[] | select(.outcome != "ok")'
    """
    from daemon.config import load_config

    try:
        config = load_config(config_path, os.environ)
    except ConfigError as error:
        findings = [
            {"check": "config", "outcome": "fail", "says": str(p), "do": "mend the configuration"}
            for p in error.problems
        ]
        _print(findings, as_json)
        return USAGE
    try:
        from daemon.doctor import examine, shortened
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_EXTRA:
            raise
        says, do = f"{package} is not installed", 'pip install "driftd[daemon]"'
        _print([{"check": "packages", "outcome": "fail", "says": says, "do": do}], as_json)
        return REFUSED
    found = []
    # What the rooms and their clients log of it stands in the findings; nobody else listens.
    unheard, logging.lastResort = logging.lastResort, None
    try:
        for finding in examine(config, lambda: ask(config.http)):
            found.append(asdict(shortened(finding)))
            if not as_json:
                _print(found[-1:], as_json)
    finally:
        logging.lastResort = unheard
    if as_json:
        _print(found, as_json)
    return REFUSED if any(finding["outcome"] == "fail" for finding in found) else OK


def _print(findings: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print_json(findings)
        return
    for finding in findings:
        mark = click.style(f"{finding['outcome']:<4}", fg=COLOURS[finding["outcome"]])
        click.echo(f"{mark}  {finding['check']:<8}  {finding['says']}")
        if finding["do"]:
            click.echo(f"{'':16}-> {finding['do']}")
