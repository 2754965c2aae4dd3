"""The help of every command as one page: ``python -m daemon.cli.reference``."""

from __future__ import annotations

import click

from daemon.cli.app import COMMANDS, driftd


def reference() -> str:
    """Markdown: the help page of ``driftd``, and each command's in the order given there."""
    settings = {**driftd.context_settings, "max_content_width": 90, "terminal_width": 90}
    group = click.Context(driftd, info_name="driftd", **settings)
    blocks = [f"## driftd\n\n```text\n{driftd.get_help(group).strip()}\n```"]
    for name in COMMANDS:
        command = driftd.get_command(group, name)
        assert command is not None
        context = click.Context(command, parent=group, info_name=name)
        blocks.append(f"## driftd {name}\n\n```text\n{command.get_help(context).strip()}\n```")
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
