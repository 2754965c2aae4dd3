"""Real streams for benchmarks, read from the folder named by DRIFTD_DATA (see `folder`)."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class NoData(Exception):  # noqa: N818
    """The folder of data sets is not there; the message says where it was looked for."""


def folder() -> Path:
    """Where the data sets lie: ``$DRIFTD_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    place = Path(os.environ.get("DRIFTD_DATA", beside))
    if not place.is_dir():
        raise NoData(f"no data sets in {place}: set DRIFTD_DATA to their folder")
    return place


def table(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features float64 [n, f] and labels int64 [n] of ``elec2`` or ``noaa_weather``, in order."""
    with gzip.open(folder() / f"{name}.csv.gz", "rt", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        rows = list(reader)
    labels = sorted({row[-1] for row in rows})
    truth = np.array([labels.index(row[-1]) for row in rows], dtype=np.int64)
    return np.array([row[:-1] for row in rows], dtype=np.float64), truth


def texts(name: str) -> tuple[list[str], list[str]]:
    """Texts and labels of ``banking77_train``, ``banking77_test`` or ``reuters_top10``."""
    with gzip.open(folder() / f"{name}.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    label = "category" if "category" in rows[0] else "label"
    return [row["text"] for row in rows], [row[label] for row in rows]


def clinc150(part: str = "train") -> tuple[list[str], list[str], list[str]]:
    """Texts, intents and domains of CLINC150's part ``train``, ``val`` or ``test``."""
    with gzip.open(folder() / "clinc150.json.gz", "rt") as file:
        rows = json.load(file)[part]
    domains = json.loads((folder() / "clinc150_domains.json").read_text())
    domain = {intent: name for name, intents in domains.items() for intent in intents}
    found = [(text, intent) for text, intent in rows if intent in domain]
    return [t for t, _ in found], [i for _, i in found], [domain[i] for _, i in found]
