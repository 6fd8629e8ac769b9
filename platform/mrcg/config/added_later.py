"""Settings that earlier versions did not have, and what these versions did in their place."""

from collections.abc import Mapping
from typing import Any

#: Settings that earlier versions of MRCG did not have, by group, and the value that says what these versions did. With
#: this value, a setting is left out of manifests and versions, so that artefacts of earlier versions are found (all but
#: reports, which have more in them now).
ADDED_LATER: Mapping[str, Mapping[str, Any]] = {
    "ingest": {"include": [], "exclude": [], "unknown_patients": []},
    "encoder": {"mirror": False, "whiten": 0, "trunk_engine": "torch"},
    "embed": {"appearance": {"components": 0}},
    "evaluate": {"order": "score", "known_items": 0},
}
