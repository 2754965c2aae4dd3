"""registry: versions, the aliases that say which one serves, and the journal. Knows files only.

open_registry   a folder (or later an object store) -> Registry
Registry        publish, version, path (digests checked), promote, follow, rollback, pin, requests
State           champion, challenger, previous, controls: one document under compare-and-swap
Manifest        lineage, labels, input schema, metrics, digest of every file of a version
Routing         which traffic a challenger sees: shadow, canary; Traffic is what servers counted
Lease           who leads, where several daemons share the model
Journal         append-only rows: every move, who, when, why, from, to

Imports no other room; several processes may use one registry at once.
"""

from .config import RegistryConfig
from .durable import Sound
from .errors import (
    Conflict,
    Corrupt,
    DigestMismatch,
    Invalid,
    NotFound,
    PinnedError,
    RegistryError,
    Repeated,
    StorageError,
    Superseded,
    Untrusted,
    Withdrawn,
)
from .journal import Journal, Row
from .lease import Lease
from .lineage import Stretch, moment
from .manifest import FileEntry, Manifest, ManifestDraft
from .registry import CHAMPION_MOVES, STEPS_KEPT, Registry, Request, Version, open_registry
from .routing import MODES, Counts, Mode, Routing, Traffic
from .state import Control, Move, State
from .store import Store

__all__ = [
    "CHAMPION_MOVES",
    "MODES",
    "STEPS_KEPT",
    "Conflict",
    "Control",
    "Corrupt",
    "Counts",
    "DigestMismatch",
    "FileEntry",
    "Invalid",
    "Journal",
    "Lease",
    "Manifest",
    "ManifestDraft",
    "Mode",
    "Move",
    "NotFound",
    "PinnedError",
    "Registry",
    "RegistryConfig",
    "RegistryError",
    "Repeated",
    "Request",
    "Routing",
    "Row",
    "Sound",
    "State",
    "StorageError",
    "Store",
    "Stretch",
    "Superseded",
    "Traffic",
    "Untrusted",
    "Version",
    "Withdrawn",
    "moment",
    "open_registry",
]
