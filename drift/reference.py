"""What normal is: the events a version was proven on, and their signature, as plain arrays.

The daemon stores one with every version (``reference.safetensors``); `Monitors.fit` and `diagnose`
take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.signal import DriftError, Observations, State
from drift.signature import Signature


@dataclass(frozen=True, slots=True)
class Reference:
    """Drift-free observations of the serving model, and the signature of their regime."""

    observations: Observations
    signature: Signature

    @classmethod
    def of(cls, observations: Observations, limit: int, space: str = "") -> Self:
        """The last ``limit`` of these events; ``space`` names the encoder they went through."""
        kept = observations.take(slice(max(0, len(observations) - limit), None))
        return cls(kept, Signature.of(kept, space))

    def __len__(self) -> int:
        return len(self.observations)

    def arrays(self) -> State:
        """Plain contiguous arrays, about 4 (d + k) bytes an event."""
        signature = {f"signature.{key}": value for key, value in self.signature.arrays().items()}
        return self.observations.arrays() | signature

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The reference that `arrays` describes.

        Raises DriftError when an array is missing or the columns differ in length.
        """
        try:
            observations = Observations.from_arrays(arrays)
        except DriftError as error:
            raise DriftError(
                f"this is no drift reference: {error}. Publish the version again, or fit on "
                "recent events instead."
            ) from error
        prefix = "signature."
        signature = {
            key.removeprefix(prefix): value
            for key, value in arrays.items()
            if key.startswith(prefix)
        }
        return cls(observations, Signature.from_arrays(signature))
