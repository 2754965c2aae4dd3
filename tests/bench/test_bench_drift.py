"""The yardstick and the drawing of `bench drift`, and how it reads what peers did."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench._drift_errors import (
    REFERENCE,
    SETTLED,
    RunLengths,
    Trial,
    alarmed,
    calm,
    cusum_alarms,
    missing_as,
    steps,
)
from bench._drift_plot import Axes, Point, Series, chart
from bench._peers_drift import on_errors


def test_steps_of_the_cusum_are_log_likelihood_ratios() -> None:
    right, wrong = steps(0.2, 0.4)
    assert right == pytest.approx(math.log(0.75))
    assert wrong == pytest.approx(math.log(2))


def test_the_cusum_alarms_when_the_errors_add_up_and_starts_again() -> None:
    errors = np.array([0, 1, 0, 1, 1, 1, 1, 1], dtype=np.uint8)
    # 0, 0.69, 0.41, 1.10, 1.79, then from zero: 0.69, 1.39, 2.08
    assert cusum_alarms(errors, 1.5) == [4, 7]


def test_the_simulated_threshold_gives_the_run_length_asked_for() -> None:
    threshold = RunLengths.simulated(4_000_000, seed=1).threshold(1_000)
    found = len(cusum_alarms(calm(1, 400_000, seed=2)[0, REFERENCE:], threshold))
    assert 300 < found < 500  # 400, give or take five standard deviations


def test_a_run_length_that_was_not_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        RunLengths.simulated(400_000).threshold(1e9)


def test_a_rise_is_found_after_it_happened_and_none_is_not() -> None:
    risen = Trial.of(np.full(600, 0.9), runs=3, seed=0)
    assert risen.errors.shape == (3, REFERENCE + SETTLED + 600)
    assert all(delay is not None and 0 < delay < 60 for delay in risen.delays(20_000))
    assert Trial.of(np.full(600, 0.05), runs=3, seed=0).delays(20_000) == [None] * 3


def test_what_was_not_found_counts_as_the_whole_horizon() -> None:
    assert missing_as([10, None], 500).tolist() == [10.0, 500.0]


def test_no_alarm_counts_before_the_reference_ends() -> None:
    assert min(alarmed(calm(1, 50_000, seed=0, rate=0.2)[0], 200)) >= 0


def test_a_peer_is_counted_after_its_warm_up_and_from_the_change(tmp_path: Path) -> None:
    # A detector that takes every error for a drift.
    streams = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=np.uint8)
    for name in ("calm", "abrupt", "slight", "ramp"):
        np.save(tmp_path / f"{name}.npy", streams)
    found = on_errors(lambda: bool, tmp_path, before=1, change=2, limit=5.0)
    assert found["calm"] == [2, 0]
    assert found["abrupt"] == [3, None]
    assert found["events"] == streams.size


def test_the_chart_is_xml_with_everything_inside_its_frame() -> None:
    points = [Point(0.5, 80, "A & <B>"), Point(0.0, 9_999), Point(1e6, 10)]
    drawn = chart(
        "x -> y", [Series("one", "#123456", points, line=True, named=True)], Axes(0.01, 100, 400)
    )
    root = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    circles = root.findall(f"{svg}circle")
    assert len(circles) == len(points) + 1  # and one in the legend
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    assert [c.attrib["fill"] for c in circles[:3]] == ["#123456", "#fff", "#123456"]
    assert any("mean delay" in (text.text or "") for text in root.iter(f"{svg}text"))
