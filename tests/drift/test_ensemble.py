"""The configured detectors together: one budget, one state, and a reason for silence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drift import (
    Detector,
    DriftConfig,
    DriftError,
    Monitors,
    NotEnoughReference,
    NotFitted,
    Observations,
    Reference,
    SettingsChanged,
    Signal,
)
from drift.ensemble import CALIBRATED, RIVER

ALL = (*CALIBRATED, *RIVER)


def alarms(signals: list[Signal]) -> list[str]:
    return [signal.detector for signal in signals if signal.alarmed]


def test_every_name_of_the_config_is_a_detector_of_that_name(world: Any) -> None:
    monitors = Monitors(DriftConfig(detectors=ALL))
    assert [d.name for d in monitors.detectors] == list(ALL)
    assert all(isinstance(d, Detector) for d in monitors.detectors)
    monitors.fit(world.events(600))
    signals = monitors.observe(world.events(100))
    assert [s.detector for s in signals] == list(ALL)
    assert {s.kind for s in signals} == {"concept", "covariate", "label"}


def test_the_budget_is_shared(make_world: Callable[..., Any]) -> None:
    """Three detectors on one budget alarm no more often together than one may alone."""
    found = 0
    for seed in range(10):  # 10 references, 100,000 events: 33 false alarms are allowed
        world = make_world(seed=seed)
        monitors = Monitors(DriftConfig(false_alarm=3_000))
        monitors.fit(world.events(1_500))
        for signal in monitors.observe(world.events(10_000)):
            found += len(signal.evidence["at"])  # type: ignore[arg-type]
    assert 5 <= found <= 45


def test_each_kind_of_drift_is_seen_by_its_detector(make_world: Callable[..., Any]) -> None:
    cases = {
        "error_rate": {"relabel": {0: 1, 1: 0}},
        "embedding": {"move": {0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0}},
        "class_mix": {"mix": [0.6, 0.2, 0.1, 0.1]},
    }
    for name, drift in cases.items():
        world = make_world(seed=3)
        monitors = Monitors()
        monitors.fit(world.events(2_000))
        assert alarms(monitors.observe(world.events(500))) == []
        assert name in alarms(monitors.observe(world.events(200, **drift)))


def test_a_restart_goes_on_where_it_was(world: Any) -> None:
    config = DriftConfig(detectors=ALL, false_alarm=1_000)
    monitors = Monitors(config)
    monitors.fit(world.events(600))
    monitors.observe(world.events(333))
    restarted = Monitors(config)
    restarted.restore({key: value.copy() for key, value in monitors.state().items()})
    for _ in range(4):
        batch = world.events(90, mix=[0.4, 0.2, 0.2, 0.2], move={1: 2.0})
        assert restarted.observe(batch) == monitors.observe(batch)


def test_state_names_its_detector(world: Any) -> None:
    monitors = Monitors()
    monitors.fit(world.events(600))
    prefixes = {key.split(".")[0] for key in monitors.state() if "." in key}
    assert prefixes == {"error_rate", "embedding", "class_mix"}


def test_without_labels_the_embeddings_are_watched_and_the_rest_say_why_not(world: Any) -> None:
    monitors = Monitors()
    monitors.fit(world.events(1_000, labelled=0.0))
    assert set(monitors.waiting) == {"error_rate", "features", "class_mix"}
    signals = monitors.observe(world.events(200, move=dict.fromkeys(range(4), 3.0)))
    assert alarms(signals) == ["embedding"]
    assert "labelled events" in str(signals[0].evidence["waiting"])
    assert "does not run" in monitors.distances()[0].sentence()
    # And after a restart too.
    restarted = Monitors()
    restarted.restore(monitors.state())
    assert restarted.waiting == monitors.waiting
    # Labels come in: all of them run that have something to look at.
    monitors.fit(world.events(1_000))
    assert set(monitors.waiting) == {"features"}


def test_a_reference_too_small_for_any_is_refused(world: Any) -> None:
    monitors = Monitors()
    with pytest.raises(NotEnoughReference, match="Collect more"):
        monitors.fit(world.events(50))
    with pytest.raises(NotFitted):
        monitors.observe(world.events(10))


def test_a_refused_reference_leaves_things_as_they_were(world: Any) -> None:
    monitors = Monitors()
    monitors.fit(world.events(600))
    monitors.observe(world.events(300))
    before = monitors.state()
    with pytest.raises(NotEnoughReference):
        monitors.fit(world.events(20))
    for key, value in monitors.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_distances_say_how_far_each_is_from_alarming(world: Any) -> None:
    monitors = Monitors()
    assert all(d.waiting for d in monitors.distances())
    monitors.fit(world.events(1_000))
    monitors.observe(world.events(300))
    before = monitors.state()
    calm = {d.detector: d.share for d in monitors.distances()}
    assert all(0 <= share < 1 for share in calm.values())
    for key, value in monitors.state().items():
        np.testing.assert_array_equal(value, before[key])
    monitors.observe(world.events(20, relabel={0: 1, 1: 0}))
    worse = {d.detector: d for d in monitors.distances()}
    assert worse["error_rate"].share > calm["error_rate"]
    assert "% of the way to an alarm" in worse["error_rate"].sentence()


def test_a_state_of_other_settings_is_refused_by_name(world: Any) -> None:
    monitors = Monitors()
    monitors.fit(world.events(600))
    other = Monitors(DriftConfig(false_alarm=50_000))
    with pytest.raises(SettingsChanged, match="false_alarm"):
        other.restore(monitors.state())


def test_config_refuses_nonsense() -> None:
    for wrong in ({"false_alarm": 0}, {"detectors": ()}, {"detectors": ("nose",)}, {"budget": 1}):
        with pytest.raises(ValidationError):
            DriftConfig.model_validate(wrong)


def test_every_default_has_its_reason() -> None:
    for name, field in DriftConfig.model_fields.items():
        assert field.description, name
        assert len(field.description) > 60, name


def test_a_reference_survives_being_stored(world: Any, tmp_path: Any) -> None:
    from safetensors.numpy import load_file, save_file

    reference = Reference.of(world.events(900), limit=700, space="minilm@1")
    assert len(reference) == 700
    save_file(reference.arrays(), tmp_path / "reference.safetensors")
    loaded = Reference.from_arrays(load_file(tmp_path / "reference.safetensors"))
    assert loaded.signature.space == "minilm@1"
    assert loaded.signature.distance(reference.signature) == 0
    one, other = Monitors(), Monitors()
    one.fit(reference)
    other.fit(loaded)
    batch: Observations = world.events(200)
    assert one.observe(batch) == other.observe(batch)


def test_a_damaged_reference_is_refused(world: Any) -> None:
    arrays = Reference.of(world.events(300), limit=300).arrays()
    short = {**arrays, "labels": arrays["labels"][:-1]}
    with pytest.raises(DriftError, match="columns differ"):
        Reference.from_arrays(short)
    del arrays["embeddings"]
    with pytest.raises(DriftError, match="embeddings missing"):
        Reference.from_arrays(arrays)


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, json, drift; print(json.dumps([m for m in "
        "('torch', 'river', 'scipy', 'onnx', 'daemon', 'registry') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
