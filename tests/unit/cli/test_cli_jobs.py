"""``mrcg.pipeline.update``: the line behind a release. (``unit/index/test_growth.py`` is about parts of an index.)"""

import pytest
from tests import factories
from tests.manifests import counts_of

from mrcg.config.loading import with_overrides
from mrcg.corpus.sources import Source
from mrcg.errors import IntegrityError, NotFoundError, SettingsError
from mrcg.pipeline.plan import Ancestry
from mrcg.pipeline.update import ReleaseUpdate, purged_corpus
from mrcg.releases.release import read_release
from mrcg.stages.registry import pipeline_stages

GROWN = ["corpus", "splits", "embeddings", "indexes", "graphs", "reports"]
SOURCE = Source("/somewhere", "another digest", 10, 10, False)


@pytest.fixture(scope="module")
def line(library_store):
    return ReleaseUpdate.of(library_store, read_release(library_store))


def versions(steps):
    return {step.stage.kind: step.version for step in steps}


def grown(line):
    return line.steps(SOURCE, Ancestry(base=line.release.corpus))


def test_the_settings_of_a_release_are_in_its_manifests(line):
    config = factories.tiny_config()
    for name in ("ingest", "split", "encoder", "embed", "index", "graph", "reranker", "evaluate", "seed"):
        if name != "encoder":  # its weights are a digest there
            assert getattr(line.config, name) == getattr(config, name), name
    assert line.config.encoder.embedding_dim == config.encoder.embedding_dim
    assert set(line.manifests) == {stage.kind for stage in pipeline_stages(config)}


def test_models_stay_and_all_else_is_made_anew(line):
    steps = grown(line)
    assert [step.stage.kind for step in steps] == GROWN
    made = versions(steps)
    assert not {(kind, version) for kind, version in made.items()} & set(line.release.pins.items())
    by_kind = {step.stage.kind: step for step in steps}
    assert by_kind["embeddings"].inputs == {
        "corpus": made["corpus"], "encoders": line.release.encoder, "embeddings": line.manifests["embeddings"].version,
    }  # fmt: skip
    assert by_kind["indexes"].inputs["indexes"] == line.release.index
    assert by_kind["reports"].inputs["rerankers"] == line.release.reranker
    assert by_kind["graphs"].settings["parts"] == ["validation", "test"], (
        "the training part taught the reranker already"
    )
    assert by_kind["corpus"].inputs == {"corpus": line.release.corpus}


def test_the_same_state_gives_the_same_versions(line, library_store):
    again = ReleaseUpdate.of(library_store, read_release(library_store))
    assert versions(grown(again)) == versions(grown(line))
    assert versions(again.purge_steps("a list")) == versions(line.purge_steps("a list"))


def test_another_source_list_or_way_gives_other_versions(line):
    other = Source("/somewhere", "a third digest", 10, 10, False)
    three = [
        versions(line.steps(other, Ancestry(base=line.release.corpus))),
        versions(grown(line)),
        versions(line.purge_steps("a list")),
        versions(line.purge_steps("another list")),
    ]
    for kind in GROWN:
        assert len({one[kind] for one in three}) == len(three), kind


def test_the_place_of_a_source_makes_no_version(line):
    moved = Source("/elsewhere", SOURCE.listing_digest, 10, 10, False)
    assert versions(line.steps(moved, Ancestry(base=line.release.corpus))) == versions(grown(line))


@pytest.mark.parametrize(
    ("override", "kept", "moved"),
    [
        ("index.shards=3", {"corpus", "splits", "embeddings"}, {"indexes", "graphs", "reports"}),
        ("evaluate.picture_queries=3", {"corpus", "splits", "embeddings", "indexes", "graphs"}, {"reports"}),
        ("compute.index_threads=1", set(GROWN), set()),
        ("release.max_map_drop=0.5", set(GROWN), set()),
    ],
)
def test_an_override_moves_what_it_makes_and_nothing_else(line, library_store, override, kept, moved):
    other = versions(grown(ReleaseUpdate.of(library_store, read_release(library_store), [override])))
    same = versions(grown(line))
    assert {kind for kind in GROWN if other[kind] == same[kind]} == kept
    assert {kind for kind in GROWN if other[kind] != same[kind]} == moved


def test_an_index_of_other_settings_does_not_grow_from_the_old_one(line, library_store):
    other = ReleaseUpdate.of(library_store, read_release(library_store), ["index.kind=hnsw"])
    (step,) = [step for step in grown(other) if step.stage.kind == "indexes"]
    assert "indexes" not in step.inputs
    assert step.settings["index"]["kind"] == "hnsw"


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        " seed=2",
        "ingest.max_side=64",
        "split.protocol=dedup",
        "encoder.epochs=3",
        "embed.batch_size=8",
        "graph.neighbours=7",
        "reranker.hidden=4",
    ],
)
def test_overrides_of_models_and_their_gallery_are_refused(line, library_store, override):
    key = override.partition("=")[0].strip()
    message = f"--set {override}: the models or the gallery depend on {key}; change it with `mrcg run`"
    with pytest.raises(SettingsError, match=message):
        ReleaseUpdate.of(library_store, read_release(library_store), [override])
    assert with_overrides(line.config, ["index.effort=7"]).index.effort == 7


def test_an_unknown_override_names_the_nearest(library_store):
    with pytest.raises(SettingsError, match=r"unknown key index\.shard; the nearest known key is index\.shards"):
        ReleaseUpdate.of(library_store, read_release(library_store), ["index.shard=2"])


def test_a_purged_corpus_differs_from_its_base_by_the_list_alone(line):
    base = line.manifests["corpus"]
    step = purged_corpus(base, "a list")
    assert step.inputs == {"corpus": base.version}
    assert step.settings == {**base.settings, "suppressed": "a list", "purged": True}
    assert versions(line.purge_steps("a list"))["corpus"] == step.version


def test_what_one_growth_was_told_is_not_told_to_the_next(line):
    purged = line.manifests | {
        step.stage.kind: line.manifests[step.stage.kind].model_copy(update={"settings": dict(step.settings)})
        for step in line.purge_steps("a list")
    }
    assert purged["indexes"].settings["purge"]
    later = ReleaseUpdate(line.config, line.release, purged)
    (index,) = [step for step in grown(later) if step.stage.kind == "indexes"]
    assert "purge" not in index.settings


@pytest.mark.parametrize(
    ("kind", "inputs", "settings", "grows"),
    [
        ("ivf_flat", {}, {}, True),
        ("ivf_flat", {"indexes": "x"}, {}, False),
        ("ivf_flat", {"indexes": "x"}, {"purge": True}, True),
        ("flat", {"indexes": "x"}, {}, True),
        ("hnsw", {"indexes": "x"}, {}, True),
    ],
)
def test_cells_that_an_earlier_growth_did_not_look_at_are_learned_anew(line, kind, inputs, settings, grows):
    """When an index just grows, a scan may go whose vector is a cell: a later erasure would keep it unseen."""
    old = line.manifests["indexes"]
    counts = counts_of("indexes", {"kind": kind})
    old = old.model_copy(
        update={"inputs": {**old.inputs, **inputs}, "settings": {**old.settings, **settings}, "counts": counts}
    )
    changed = ReleaseUpdate(line.config, line.release, {**line.manifests, "indexes": old})
    (index,) = [step for step in changed.purge_steps("a list") if step.stage.kind == "indexes"]
    assert ("indexes" in index.inputs) is grows
    assert index.settings["purge"]
    assert "indexes" in {kind for step in grown(changed) for kind in step.inputs if step.stage.kind == "indexes"}


def test_a_manifest_that_is_gone_or_changed_is_named(scans, store):
    release = factories.make_release(store, scans)
    where = f"reports/{release.report}/manifest.json"
    whole = store.read_bytes(where)
    store.write_bytes(where, whole.replace(b'"graph"', b'"grass"').replace(b'"evaluate"', b'"estimate"'))
    with pytest.raises(IntegrityError, match="hash mismatch"):
        ReleaseUpdate.of(store, release)
    store.write_bytes(where, whole)
    store.remove(f"graphs/{store.manifest('reports', release.report).inputs['graphs']}")
    with pytest.raises(NotFoundError, match="has no graphs/"):
        ReleaseUpdate.of(store, release)
