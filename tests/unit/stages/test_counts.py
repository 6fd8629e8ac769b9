"""Manifests of every version of MRCG are read, and written as they were."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manifests import REQUIRED, make_manifest

from mrcg.errors import IntegrityError
from mrcg.hashing import digest
from mrcg.stages.counts import Counts, GraphCounts, ReportCounts
from mrcg.stages.registry import artefact_kinds, stage_of
from mrcg.storage.manifest import Manifest

#: What the first versions counted.
OLDEST = {**REQUIRED, "graphs": {}, "reports": {"protocol": "paper", "queries": 3, "ann_map": 0.5, "reranked_map": 0.6}}
extras = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=12, max_size=14),
    st.none() | st.integers() | st.lists(st.integers()) | st.dictionaries(st.text(max_size=3), st.integers()),
    max_size=3,
)


def written(kind, counts):
    """Bytes of a manifest, as the version that counted this wrote them."""
    body = {
        "kind": kind, "version": "v", "schema_number": 1, "code_version": "0.0.1", "settings": {"a": [1, None]}, "inputs": {},
        "counts": counts, "folder": f"{kind}/v/0", "files": [],
    }  # fmt: skip
    return json.dumps({**body, "digest": digest(body, 64)}, indent=1, sort_keys=True).encode()


@pytest.mark.parametrize("kind", artefact_kinds())
@given(extra=extras)
def test_a_manifest_of_any_version_is_read_and_written_as_it_was(kind, extra):
    data = written(kind, {**OLDEST[kind], **extra})
    manifest = Manifest.parse(data, "here")
    assert isinstance(manifest.counts, stage_of(kind).counts)
    assert manifest.counts.stated() == {**OLDEST[kind], **extra}
    assert manifest.to_bytes() == data


def test_what_is_not_stated_is_what_an_earlier_version_did():
    counts = Manifest.parse(written("reports", OLDEST["reports"]), "here").counts_as(ReportCounts)
    assert (counts.served_map, counts.known_first, counts.gain_low) == (None, None, None)


@pytest.mark.parametrize(("kind", "counts"), [("corpus", {}), ("splits", {"protocol": 3}), ("magic", {})])
def test_a_manifest_without_what_every_version_counted_is_none(kind, counts):
    with pytest.raises(IntegrityError, match="is not a manifest"):
        Manifest.parse(written(kind, counts), "here")


def test_counts_of_another_kind_are_a_mistake_of_the_code():
    manifest = make_manifest("corpus", "v", {}, {}, {}, [])
    with pytest.raises(AssertionError):
        manifest.counts_as(GraphCounts)


def test_counts_are_replaced_where_others_state_them():
    first, second = Counts.model_validate({"a": 1, "b": 2}), Counts.model_validate({"b": 3})
    assert first.replaced_by(second) == {"a": 1, "b": 3}
