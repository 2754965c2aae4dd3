"""``python -m daemon.cli``: the same as ``driftd``."""

from daemon.cli import main

main()
