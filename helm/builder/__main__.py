"""``python -m helm.builder [--check]``: write the built files, or say which are out of date."""

from __future__ import annotations

import sys

from helm.builder.files import ROOT, built


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` compare; 1 if a file is out of date."""
    stale = [
        path
        for path, text in built().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(built()[path], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
