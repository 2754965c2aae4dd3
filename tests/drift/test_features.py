"""Feature columns survive storage and joining as they were."""

from __future__ import annotations

import numpy as np

from drift.features import joined, packed, unpacked
from drift.signal import Observations


def column(*values: object) -> np.ndarray:
    return np.array(values, dtype=object)


def test_plain_arrays_and_back() -> None:
    features = {
        "amount": np.array([1.5, np.nan, np.inf]),
        "country.code": column("ü", None, "de"),
        "nothing": column(None, None, None),
    }
    arrays = packed(features)
    assert all(array.dtype != object for array in arrays.values())
    back = unpacked(arrays)
    assert list(back) == sorted(features)
    np.testing.assert_array_equal(back["amount"], features["amount"])
    assert back["country.code"].tolist() == ["ü", None, "de"]
    assert back["nothing"].tolist() == [None] * 3


def test_a_feature_that_appears_is_missing_before() -> None:
    both = joined(
        [
            ({"a": np.ones(2)}, 2),
            ({"a": np.zeros(1), "b": np.ones(1), "c": column("x")}, 1),
        ]
    )
    assert both["a"].tolist() == [1, 1, 0]
    assert np.isnan(both["b"][:2]).all()
    assert both["c"].tolist() == [None, None, "x"]


def test_a_feature_that_changes_its_type_becomes_categorical() -> None:
    both = joined([({"a": np.array([1.5])}, 1), ({"a": column("low")}, 1)])
    assert both["a"].tolist() == ["1.5", "low"]


def test_observations_keep_their_features() -> None:
    def events(n: int, classes: int) -> Observations:
        return Observations(
            np.zeros((n, 2), np.float32),
            np.full((n, classes), 1 / classes, np.float32),
            np.zeros(n, np.int64),
            np.arange(n, dtype=float),
            {"size": np.arange(n, dtype=float), "kind": column(*"abc"[:n])},
        )

    both = Observations.join([events(2, 2), events(3, 4)])
    assert both.probabilities.shape == (5, 4)
    back = Observations.from_arrays(both.arrays()).take(slice(2, None))
    assert back.features["size"].tolist() == [0, 1, 2]
    assert back.features["kind"].tolist() == ["a", "b", "c"]
