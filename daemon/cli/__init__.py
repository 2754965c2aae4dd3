"""The command `driftd`: run the daemon and the server, and operate what they serve.

app        the group of commands, exit codes, and errors in an operator's words
options    what commands share: which registry, JSON or tables, who acts and why
output     tables, times and sparklines
processes  run, serve, up;  setup  init, check;  doctor  doctor;  status  status
versions   versions, show, diff;  moves  promote, rollback, pin, pause, refresh;  journal  journal
keys       verify, keygen;  exchange  export-mlflow, import-mlflow

Nothing of the training extra is imported before a command needs it.
"""

from daemon.cli.app import main

__all__ = ["main"]
