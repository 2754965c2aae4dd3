"""A process shut in as the chart's containers are: another user, no rights, a read-only root.

A mount namespace stands in for the container: one folder is mounted where the chart mounts the
volume, code and interpreter can be read, /tmp is empty, and nothing else can be written to.
Seccomp's `RuntimeDefault` is the container runtime's own, and not part of this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Where the process finds its folder.
PLACE = Path("/var/lib/driftd")
#: User and group of the chart's pods.
USER = 10001
# Checkout and interpreter are mounted, as they may lie below a folder that is closed to others.
# Capabilities are dropped last, with the user.
SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/driftd /var/lib/source /var/lib/python /var/lib/packages
mount --bind "$DATA" /var/lib/driftd
if [ "$READ_ONLY" = yes ]; then mount -o remount,bind,ro /var/lib/driftd; fi
if [ -n "$WRITABLE" ]; then mount --bind "$DATA/$WRITABLE" "/var/lib/driftd/$WRITABLE"; fi
mount --bind "$SOURCE" /var/lib/source
mount --bind "$PREFIX" /var/lib/python
mount --bind "$PACKAGES" /var/lib/packages
for place in source python packages; do mount -o remount,bind,ro /var/lib/$place; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,ro /var/lib
mount -o remount,bind,ro /
if touch /root-is-writable 2>/dev/null; then echo "the root is writable"; exit 99; fi
cd /tmp
exec setpriv --reuid "$USER_ID" --regid "$GROUP_ID" --clear-groups --no-new-privs \\
  --inh-caps=-all --bounding-set=-all \\
  env -i PATH=/usr/bin:/bin HOME=/tmp OMP_NUM_THREADS=1 \\
  PYTHONPATH=/var/lib/source:/var/lib/packages LD_LIBRARY_PATH=/var/lib/python/lib \\
  PYTHONDONTWRITEBYTECODE=1 "$@"
"""


@cache
def why_not() -> str | None:
    """What hinders it here, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root, to give it up"
    if not all(shutil.which(name) for name in ("unshare", "setpriv", "mount")):
        return "needs unshare, setpriv and mount (util-linux)"
    if any(not path.stat().st_mode & 0o001 for path in (ROOT, Path(sys.base_prefix))):
        return "needs a checkout and an environment that other users may read"
    tried = subprocess.run(
        ["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False
    )
    return None if tried.returncode == 0 else "needs the right to make mount namespaces"


def confined(
    data: Path,
    *arguments: str,
    environment: Sequence[str] = (),
    user: int = USER,
    group: int = USER,
    read_only: bool = False,
    writable: str = "",
) -> tuple[list[str], dict[str, str]]:
    """``driftd`` with these arguments, shut in: a command, and the environment to start it with.

    data: the folder that it finds as `PLACE`; ``read_only`` but for its part ``writable``.
    environment: `NAME=value`, for the process itself.
    """
    major, minor = sys.version_info[:2]
    driftd = f"/var/lib/python/bin/python{major}.{minor}", "-m", "daemon.cli", *arguments
    outer = {
        **os.environ,
        "DATA": str(data),
        "READ_ONLY": "yes" if read_only else "no",
        "WRITABLE": writable,
        "SOURCE": str(ROOT),
        "PREFIX": sys.base_prefix,
        "PACKAGES": sysconfig.get_path("purelib"),
        "USER_ID": str(user),
        "GROUP_ID": str(group),
    }
    return ["unshare", "-m", "sh", "-c", SCRIPT, "sh", *environment, *driftd], outer
