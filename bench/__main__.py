"""Runs one benchmark: ``python -m bench NAME [--quick]``; without a name, lists them."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import time

import bench
from bench.report import Row, save, show

SUPPORT = {"__main__", "report", "streams"}


def names() -> list[str]:
    """The benchmarks there are: every other module of this package that has ``rows``."""
    return sorted(
        m.name
        for m in pkgutil.iter_modules(bench.__path__)
        if m.name not in SUPPORT and not m.name.startswith("_")
    )


def main() -> None:
    """Run it, print it, and keep the result of a full run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=bench.__doc__)
    parser.add_argument("name", nargs="?", choices=names(), help="which benchmark")
    parser.add_argument(
        "--quick", action="store_true", help="under a minute, on less; nothing is written"
    )
    parser.add_argument(
        "--only", help="parts of it, with commas; the others keep the figures that they have"
    )
    options = parser.parse_args()
    if options.name is None:
        for name in names():
            words = importlib.import_module(f"bench.{name}").__doc__ or ""
            print(f"{name:10} {words.splitlines()[0] if words else ''}")
        return
    began = time.monotonic()
    parts = {"only": options.only.split(",")} if options.only else {}
    rows: list[Row] = list(
        importlib.import_module(f"bench.{options.name}").rows(options.quick, **parts)
    )
    show(options.name, rows)
    if not options.quick:
        print(f"written: {save(options.name, rows, time.monotonic() - began).name}")


if __name__ == "__main__":
    main()
