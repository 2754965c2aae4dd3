"""The marks that export leaves in an ONNX file, and that a patch reads.

Every parameter is an initialiser of its own name, or ``<name>_quantized`` with its ``_scale`` and
``_zero_point``. Two metadata entries say which of them lie transposed, and which parameters the
graph does not use at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

QUANTIZED, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"

_TRANSPOSED = "driftd.transposed"
_UNUSED = "driftd.unused"


@dataclass(frozen=True, slots=True)
class Marks:
    """transposed: parameters stored as their transpose. unused: those without a place."""

    transposed: frozenset[str]
    unused: frozenset[str]

    @classmethod
    def read(cls, model: ModelProto) -> Marks:
        """The marks of a model; none if it was not exported by this room."""
        properties = {entry.key: entry.value for entry in model.metadata_props}
        return cls(
            frozenset(json.loads(properties.get(_TRANSPOSED, "[]"))),
            frozenset(json.loads(properties.get(_UNUSED, "[]"))),
        )

    def write(self, model: ModelProto) -> None:
        """Put the marks into a model that has none."""
        for key, names in ((_TRANSPOSED, self.transposed), (_UNUSED, self.unused)):
            entry: Any = model.metadata_props.add()
            entry.key, entry.value = key, json.dumps(sorted(names))


def initializers(model: ModelProto) -> dict[str, Any]:
    """The graph's TensorProtos by name."""
    found: Iterable[Any] = model.graph.initializer
    return {tensor.name: tensor for tensor in found}
