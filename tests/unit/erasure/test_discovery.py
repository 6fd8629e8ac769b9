import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import tiny_config
from tests.galleries import Line, Scan, index_config, published, vectors_of
from tests.manifests import make_manifest

from mrcg.erasure import discovery
from mrcg.errors import IntegrityError
from mrcg.hashing import digest
from mrcg.privacy.tombstones import entry_of
from mrcg.stages import registry
from mrcg.stages.registry import pipeline_stages
from mrcg.storage import schemas
from mrcg.storage.catalog import all_manifests
from mrcg.storage.manifest import Manifest, derive_version

# Affected versions ---------------------------------------------------------------------------------------------------

ORDER = [stage.kind for stage in pipeline_stages()]
MODELS = {stage.kind for stage in registry.STAGES if stage.learned}
FROZEN = tiny_config("encoder.freeze=convolutions", "encoder.augment=false")
INPUTS = {stage.kind: stage.inputs(FROZEN) for stage in pipeline_stages()}


def made(kind, number, inputs, purge=False):
    settings = {"number": number, **({"purge": True} if purge else {})}
    return make_manifest(kind, derive_version(kind, settings, inputs), settings, inputs, {}, [])


@st.composite
def lines(draw):
    """Draw lines of versions, each made from earlier ones of any line, with some purged indexes; and some roots."""
    found: dict[tuple[str, str], Manifest] = {}
    for number in range(draw(st.integers(1, 4))):
        for kind in ORDER:
            inputs = {}
            for name in INPUTS[kind]:
                versions = [version for of, version in found if of == name]
                inputs[name] = draw(st.sampled_from(versions[-3:]))
            earlier = [version for of, version in found if of == kind]
            if kind in ("corpus", "embeddings", "indexes") and earlier and draw(st.booleans()):
                inputs[kind] = draw(st.sampled_from(earlier))
            one = made(kind, number, inputs, kind == "indexes" and draw(st.booleans()))
            found[kind, one.version] = one
    roots = draw(st.lists(st.sampled_from([key for key in found if key[0] in ("corpus", "indexes")]), max_size=3))
    return found, roots


def naively_affected(manifests, key, roots):
    """Return whether a version may hold data from the roots, by recursion from the version."""
    if key in roots:
        return True
    if key[0] in MODELS:
        return False
    one = manifests[key]
    for kind, version in one.inputs.items():
        own = kind == one.kind
        if own and (kind != "indexes" or one.settings.get("purge")):
            continue
        if kind not in MODELS and naively_affected(manifests, (kind, version), roots):
            return True
    return False


@given(lines())
def test_only_versions_made_from_the_roots_are_affected(drawn):
    manifests, roots = drawn
    found = discovery.affected_versions(manifests, roots)
    assert found == {key for key in manifests if naively_affected(manifests, key, roots)}


@given(lines())
def test_models_are_not_affected_and_affect_nothing(drawn):
    manifests, roots = drawn
    assert not {key for key in discovery.affected_versions(manifests, roots) if key[0] in MODELS}
    models = [key for key in manifests if key[0] in MODELS]
    assert discovery.affected_versions(manifests, models) == set(models), "as roots they affect nothing else"


@given(lines())
def test_versions_made_from_a_purged_corpus_are_not_affected(drawn):
    """Everything is made again from a purged corpus, and its index takes no parts from the index that it extends."""
    manifests, roots = drawn
    versions = {kind: [version for of, version in manifests if of == kind][-1] for kind in ORDER}
    purged: dict[str, str] = {"encoders": versions["encoders"], "rerankers": versions["rerankers"]}
    for kind in ORDER:
        if kind in MODELS:
            continue
        inputs = {name: purged[name] for name in INPUTS[kind]}
        if kind in ("corpus", "embeddings", "indexes"):
            inputs[kind] = versions[kind]
        one = made(kind, 99, inputs, purge=kind == "indexes")
        manifests[kind, one.version] = one
        purged[kind] = one.version
    found = discovery.affected_versions(manifests, roots)
    assert not found.intersection(purged.items())


def test_damaged_versions_affect_nothing():
    assert discovery.affected_versions({("corpus", "a"): None, ("splits", "b"): None}, [("corpus", "a")]) == {
        ("corpus", "a")
    }


def test_models_and_their_figures_are_what_an_erasure_keeps():
    assert {"encoders", "rerankers", "trials"} == MODELS


# Galleries --------------------------------------------------------------------------------------------------------

SCANS = [Scan(number, patient=digest(["who", number // 4], 32)) for number in range(40)]
VECTORS = vectors_of(SCANS, 8)
MINE = [one.image_id for one in SCANS[:4]]
SMALL = index_config("index.kind=flat", "index.shards=1", "index.compact_above=0.9")


@pytest.fixture
def line(store):
    return Line.of(store, SCANS, VECTORS)


def split_of(line, trained_on):
    rows = [
        {
            "image_id": one.image_id,
            "split": "train" if one.image_id in trained_on else "test",
            "validation": False,
            "held_out": False,
        }
        for one in SCANS
    ]
    table = pa.Table.from_pylist(rows, schemas.SPLITS)
    files = {"splits.parquet": schemas.to_parquet(table)}
    return published(line.store, "splits", {"of": sorted(trained_on)}, {"corpus": line.corpus}, files)


def model_of(line, splits, name="a"):
    """Publish an encoder and a reranker that were trained by some splits."""
    store, corpus = line.store, line.corpus
    encoder = published(store, "encoders", {"name": name}, {"corpus": corpus, "splits": splits}, {})
    graphs = published(
        store, "graphs", {"name": name}, {"corpus": corpus, "splits": splits, "embeddings": "e", "indexes": "i"}, {}
    )
    inputs = {"corpus": corpus, "embeddings": "e", "graphs": graphs}
    return {("encoders", encoder), ("rerankers", published(store, "rerankers", {"name": name}, inputs, {}))}


def learned(store):
    located = discovery.locate(store, {"image_id": MINE})
    return set(discovery.models_trained_on(store, all_manifests(store), located))


def test_matching_scans_are_located(store, line):
    (where,) = discovery.locate(store, {"patient": [SCANS[0].patient]})
    assert where.corpus == line.corpus
    assert where.matching["image_id"].to_pylist() == MINE
    assert where.others.num_rows == 36
    assert discovery.locate(store, {"patient": ["nobody"]}) == []
    (nobody,) = discovery.each_corpus(store, {"patient": ["nobody"]})
    assert (nobody.matching.num_rows, nobody.others.num_rows) == (0, 40)


def test_only_models_trained_on_matching_scans_are_returned(store, line):
    trained = model_of(line, split_of(line, {MINE[2]}))
    model_of(line, split_of(line, {one.image_id for one in SCANS} - set(MINE)), "other")
    assert learned(store) == trained


def test_models_whose_splits_were_removed_are_returned(store, line):
    splits = split_of(line, {SCANS[-1].image_id})
    models = model_of(line, splits)
    assert learned(store) == set()
    store.remove(f"splits/{splits}")
    assert learned(store) == models


@pytest.mark.parametrize("drawn", [MINE[0], SCANS[-1].image_id])
def test_replacement_splits_decide_as_well(store, line, drawn):
    splits = split_of(line, {SCANS[10].image_id})
    models = model_of(line, splits)
    later = split_of(line, {drawn})
    by_kind = dict(models)
    embeddings = published(
        store, "embeddings", {"n": 2}, {"corpus": line.corpus, "encoders": by_kind["encoders"]}, {}, dim=8
    )
    inputs = {
        "corpus": line.corpus,
        "splits": later,
        "embeddings": embeddings,
        "graphs": "g",
        "rerankers": by_kind["rerankers"],
    }
    published(store, "reports", {}, inputs, {})
    store.remove(f"splits/{splits}")
    assert learned(store) == (models if drawn in MINE else set())
    nobody = discovery.models_trained_on(store, all_manifests(store), [])
    assert set(nobody) == models, "without scans, any model may have been trained on them"


def test_hashes_of_vectors_that_others_share_are_left_out(store):
    vectors = VECTORS.copy()
    vectors[20] = vectors[1]  # somebody else's, the very same
    Line.of(store, SCANS, vectors)
    found = discovery.vector_hashes(store, all_manifests(store), set(MINE))
    assert len(found) == 3
    assert all(len(one) == 32 for one in found)
    assert discovery.vector_hashes(store, all_manifests(store), set()) == set()


# What is left -----------------------------------------------------------------------------------------------------


def asked(store):
    """Return the hashes of the first patient's names and vectors."""
    names = [entry_of(one) for one in (*MINE, SCANS[0].patient)]
    return names, sorted(discovery.vector_hashes(store, all_manifests(store), set(MINE)))


def test_names_and_vectors_are_found_in_every_kind_of_file(store, line):
    version, _ = line.index(SMALL)
    names, vectors = asked(store)
    page = f"<p>{MINE[0]}</p>".encode()
    published(
        store, "reports", {}, {"corpus": line.corpus}, {"a.html": page, "b.md": page, "c.txt": page, "d.json": page}
    )
    assert sorted(discovery.find_traces(store, names, vectors)) == sorted(
        [
            *(store.artefact("corpus", line.corpus).relative(name) for name in ["scans/00000.parquet"]),
            *(
                store.artefact("embeddings", line.embeddings).relative(name)
                for name in ["embeddings/g000-00000-00.arrow"]
            ),
            *(
                store.artefact("indexes", version).relative(name)
                for name in ["rows/00000-000-00.arrow", "parts/00000-000-00.vectors.f16"]
            ),
            *(
                store.artefact("reports", store.versions("reports")[0]).relative(name)
                for name in ["a.html", "b.md", "c.txt", "d.json"]
            ),
        ]
    )
    assert discovery.find_traces(store, [entry_of("nobody")], [digest("none", 32)]) == []


def test_a_vector_without_a_name_is_found(store, line):
    version, _ = line.index(SMALL)
    _, vectors = asked(store)
    assert discovery.find_traces(store, [], vectors) == [
        store.artefact("embeddings", line.embeddings).relative("embeddings/g000-00000-00.arrow"),
        store.artefact("indexes", version).relative("parts/00000-000-00.vectors.f16"),
    ]


def test_an_id_in_a_list_is_found(store, line):
    table = discovery.read_scans(store.artefact("corpus", line.corpus))
    rows = table.slice(10, 2).to_pylist()
    rows[0]["joins"] = ["a" * 32, MINE[0]]
    files = {"scans/00000.parquet": schemas.to_parquet(pa.Table.from_pylist(rows, schemas.SCANS))}
    version = published(store, "corpus", {"listing": "joined"}, {}, files)
    found = discovery.find_traces(store, [entry_of(MINE[0])], [])
    assert store.artefact("corpus", version).relative("scans/00000.parquet") in found


def test_damaged_version_is_an_error(store, line):
    store.write_bytes(f"embeddings/{line.embeddings}/manifest.json", b"{}")
    with pytest.raises(
        IntegrityError, match=f"embeddings/{line.embeddings} is damaged: `mrcg verify` shows the problem"
    ):
        discovery.find_traces(store, [], [])


def test_index_with_unlisted_rows_is_returned(store, line):
    first, _ = line.index(SMALL)
    assert discovery.with_unlisted_rows(store, all_manifests(store)) == []
    left = Line.of(store, SCANS[4:], VECTORS[4:])
    second, _ = left.index(SMALL, base=first)
    assert discovery.with_unlisted_rows(store, all_manifests(store)) == [("indexes", second)]
    purged, _ = left.index(SMALL, base=second, purge=True)
    assert discovery.with_unlisted_rows(store, all_manifests(store)) == [("indexes", second)]
    _, vectors = asked(store)
    found = discovery.find_traces(store, [], vectors)
    assert not [one for one in found if purged in one]
    assert [one for one in found if second in one or first in one]
