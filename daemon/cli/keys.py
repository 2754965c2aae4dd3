"""``driftd verify`` and ``keygen``: whether versions are what was published, and by whom."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli.app import OK, REFUSED
from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import console, print_json, size, table
from registry.signature import new_keys


@click.command()
@click.argument("versions", nargs=-1, metavar="[VERSION]...")
@target_options
@json_option
def verify(versions: tuple[str, ...], target: Target, as_json: bool) -> int:
    """Check that versions are what was published.

    Every file's size and SHA-256 is compared with the manifest, and the manifest's signature with
    registry.trusted_keys, if there are any. Without VERSION all versions are checked. Exits with
    1 if one of them must not be loaded.

    \b
    Examples:
      driftd verify
      driftd verify champion previous
    """
    found = target.ask("verify", versions=list(versions))
    if as_json:
        print_json(found)
    else:
        listed = table("version", "files", "size", "signed by", "problem", right=("files", "size"))
        for row in found:
            listed.add_row(
                row["version"],
                str(row["files"] or "-"),
                size(row["bytes"]) if row["bytes"] else "-",
                row["signed_by"] or "-",
                row["problem"] or "",
            )
        console().print(listed)
    return REFUSED if any(row["problem"] for row in found) else OK


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@json_option
def keygen(name: Path, as_json: bool) -> None:
    """Make a pair of keys to sign versions with.

    NAME.key is private: whoever publishes names it in registry.signing_key. NAME.pub is public:
    whoever loads versions names it in registry.trusted_keys. Needs the extra `signing`.

    \b
    Example:
      driftd keygen /etc/driftd/release
    """
    private, public, key = new_keys(name)
    if as_json:
        print_json({"key": key, "private": str(private), "public": str(public)})
    else:
        click.echo(f"Wrote {private} (registry.signing_key) and {public} (registry.trusted_keys).")
        click.echo(f"The key is called {key}.")
