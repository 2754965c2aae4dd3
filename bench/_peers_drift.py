"""One library's drift detectors, as they come, on streams that `bench._drift_peers` wrote.

Run as a script by the interpreter that has the library: ``python _peers_drift.py LIBRARY FOLDER
SECONDS``; writes ``FOLDER/LIBRARY.json``. What a detector has not seen after so many CPU-seconds is
left out. Needs nothing of this project, which may not be installed there.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Rows = NDArray[np.float32]
# Takes one error, 1 or 0; whether that was a drift.
Step = Callable[[int], bool]
# Takes a window of rows [n, d]; whether it drifted from the reference.
Test = Callable[[Rows], bool]

WINDOW = 256
LATE = -1
ALWAYS = ("rows-calm", "rows-30")
RUN_TIME = 20_000  # what a detector that can be told a run time between false alarms is told


def river() -> dict[str, Callable[[], Step]]:
    """All error detectors of river."""
    drift, binary = (importlib.import_module(f"river.drift{part}") for part in ("", ".binary"))
    makers: dict[str, Callable[[], Any]] = {
        "ADWIN": drift.ADWIN,
        "HDDM_W": binary.HDDMW,
        "HDDM_A": binary.HDDMA,
        "Page-Hinkley": drift.PageHinkley,
        "DDM": binary.DDM,
        "EDDM": binary.EDDM,
        "FHDDM": binary.FHDDM,
        "KSWIN": lambda: drift.KSWIN(seed=0),
    }

    def step(make: Callable[[], Any]) -> Step:
        detector = make()

        def take(error: int) -> bool:
            detector.update(error)
            return bool(detector.drift_detected)

        return take

    return {name: partial(step, make) for name, make in makers.items()}


def frouros() -> dict[str, Callable[[], Step]]:
    """Those of frouros, reset after a drift as its examples do."""
    concept = importlib.import_module("frouros.detectors.concept_drift")
    names = ["ADWIN", "HDDMW", "HDDMA", "PageHinkley", "CUSUM", "DDM", "EDDM", "RDDM", "STEPD"]
    names += ["ECDDWT", "GeometricMovingAverage", "KSWIN", "BOCD"]

    def step(name: str) -> Step:
        detector = getattr(concept, name)()

        def take(error: int) -> bool:
            detector.update(value=error)
            drifted = bool(detector.status["drift"])
            if drifted:
                detector.reset()
            return drifted

        return take

    return {name: partial(step, name) for name in names}


def capymoa() -> dict[str, Callable[[], Step]]:
    """Those of CapyMOA: most are MOA's, in Java."""
    detectors = importlib.import_module("capymoa.drift.detectors")
    names = ["ADWIN", "HDDMWeighted", "HDDMAverage", "PageHinkley", "CUSUM", "DDM", "EDDM", "RDDM"]
    names += ["STEPD", "SEED", "EWMAChart", "GeometricMovingAverage", "OPTWIN"]

    def step(name: str) -> Step:
        detector = getattr(detectors, name)()

        def take(error: int) -> bool:
            detector.add_element(float(error))
            return bool(detector.detected_change())

        return take

    return {name: partial(step, name) for name in names}


def alibi_detect(reference: Rows) -> dict[str, Callable[[], Test]]:
    """The tests of alibi-detect that take rows of numbers and need no model of one's own."""
    cd = importlib.import_module("alibi_detect.cd")

    def test(name: str, **settings: Any) -> Test:
        detector = getattr(cd, name)(reference, **settings)
        return lambda rows: bool(detector.predict(rows)["data"]["is_drift"])

    def online(name: str) -> Test:
        detector = getattr(cd, name)(
            reference, ert=RUN_TIME, window_size=WINDOW, backend="pytorch", verbose=False
        )

        def take(rows: Rows) -> bool:
            for row in rows:
                if detector.predict(row)["data"]["is_drift"]:
                    detector.reset_state()
                    return True
            return False

        return take

    return {
        "KSDrift": lambda: test("KSDrift"),
        "LSDDDrift": lambda: test("LSDDDrift", backend="pytorch"),
        "MMDDrift": lambda: test("MMDDrift", backend="pytorch"),
        "MMDDriftOnline": lambda: online("MMDDriftOnline"),
    }


def evidently(reference: Rows) -> dict[str, Callable[[], Test]]:
    """Evidently's two reports on embeddings: column by column, and a classifier."""
    pandas, package = (importlib.import_module(name) for name in ("pandas", "evidently"))
    presets = importlib.import_module("evidently.presets")
    legacy = importlib.import_module("evidently.legacy.metrics")
    report = importlib.import_module("evidently.legacy.report").Report
    mapping = importlib.import_module("evidently.legacy.pipeline.column_mapping").ColumnMapping
    names = [f"e{i}" for i in range(reference.shape[1])]
    known = pandas.DataFrame(reference, columns=names)

    def columns(rows: Rows) -> bool:
        now = pandas.DataFrame(rows, columns=names)
        found = package.Report([presets.DataDriftPreset()]).run(now, known).dict()["metrics"][0]
        return bool(found["value"]["share"] >= 0.5)  # its own limit

    def classifier(rows: Rows) -> bool:
        now = pandas.DataFrame(rows, columns=names)
        made = report(metrics=[legacy.EmbeddingsDriftMetric("e")])
        made.run(
            reference_data=known, current_data=now, column_mapping=mapping(embeddings={"e": names})
        )
        return bool(made.as_dict()["metrics"][0]["result"]["drift_detected"])

    return {"EmbeddingsDriftMetric": lambda: classifier, "DataDriftPreset": lambda: columns}


def on_errors(
    make: Callable[[], Step], folder: Path, before: int, change: int, limit: float
) -> dict[str, Any]:
    """False alarms on ``calm``, by stream, and the first alarm after the change elsewhere.

    Each stream begins with ``before`` events whose alarms do not count, to warm up; in all but
    ``calm`` the error rate changes ``change`` events later. A stream that is not finished within
    the limit is left out; raises TimeoutError when not even one is.
    """
    began, events = time.process_time(), 0
    calm = []
    for errors in np.load(folder / "calm.npy", allow_pickle=False):
        at = list(_alarms(make(), errors, began + limit))
        if at and at[-1] == LATE:
            break
        calm.append(sum(position >= before for position in at))
        events += len(errors)
    seconds = time.process_time() - began
    delays: dict[str, list[int | None]] = {}
    for name in ("abrupt", "slight", "ramp"):
        until, delays[name] = time.process_time() + limit, []
        for errors in np.load(folder / f"{name}.npy", allow_pickle=False):
            at_or_late = _alarms(make(), errors, until)
            first = next((p for p in at_or_late if p >= before + change or p == LATE), None)
            if first == LATE:
                break
            delays[name].append(None if first is None else first - before - change + 1)
    if not calm or not delays["abrupt"]:
        raise TimeoutError(f"too slow: not one stream in {limit:g} CPU-seconds")
    return {"calm": calm, **delays, "events": events, "seconds": seconds}


def _alarms(step: Step, errors: Bits, until: float) -> Iterator[int]:
    """Positions of the alarms; `LATE`, the last one, when CPU time was up before the end."""
    for at, error in enumerate(errors.tolist()):
        if at % 256 == 0 and time.process_time() > until:
            yield LATE
            return
        if step(error):
            yield at


def on_rows(library: str, folder: Path, limit: float) -> dict[str, Any]:
    """Windows that alarmed by chance, and events until one did once traffic had changed."""
    pool = np.load(folder / "pool.npy", allow_pickle=False)
    references = np.load(folder / "reference.npy", allow_pickle=False)
    names = ("rows-calm", "rows-30", "rows-10", "rows-05")
    streams = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
    makers = {"alibi_detect": alibi_detect, "evidently": evidently}[library]
    found: dict[str, Any] = {}
    for name in makers(pool[references[0]]):
        figures: dict[str, Any] = {stream: [] for stream in streams}
        began, rows, spent = time.process_time(), 0, 0.0
        try:
            for run, reference in enumerate(references):
                if run and time.process_time() - began > limit:
                    break
                test = makers(pool[reference])[name]()
                for stream in streams:
                    late = time.process_time() - began > limit
                    # However slow, it is asked at least once about calm and about much drift.
                    if late and (run or stream not in ALWAYS):
                        break
                    since = time.process_time()
                    windows = pool[streams[stream][run]].reshape(-1, WINDOW, pool.shape[1])
                    answers = _answers(test, windows, limit / 4, until_drift=stream != "rows-calm")
                    figures[stream].append(answers)
                    rows += WINDOW * len(answers)
                    spent += time.process_time() - since
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:160]}
            continue
        found[name] = {**figures, "events": rows, "seconds": spent}
    return found


def _answers(test: Test, windows: Rows, limit: float, *, until_drift: bool) -> list[bool]:
    """One for each window, up to the first drift or as far as the time goes."""
    began = time.process_time()
    answers: list[bool] = []
    for window in windows:
        answers.append(test(window))
        if (until_drift and answers[-1]) or time.process_time() - began > limit:
            break
    return answers


def main(library: str, folder: Path, limit: float) -> None:
    """Measure one library and write its figures."""
    makers = {"river": river, "frouros": frouros, "capymoa": capymoa}
    found: dict[str, Any] = {}
    if library in makers:
        where = json.loads((folder / "streams.json").read_text())
        for name, make in makers[library]().items():
            try:
                found[name] = on_errors(make, folder, where["before"], where["change"], limit)
            except Exception as error:
                found[name] = {"failed": f"{type(error).__name__}: {error}"[:160]}
    else:
        found = on_rows(library, folder, limit)
    body = {"version": version(library.replace("_", "-")), "detectors": found}
    (folder / f"{library}.json").write_text(json.dumps(body))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
