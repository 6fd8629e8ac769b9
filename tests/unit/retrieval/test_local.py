import numpy as np
import pytest
from tests.factories import make_release

from mrcg.api.requests import SearchParams
from mrcg.config.service import ServeSettings
from mrcg.corpus.reader import Corpus
from mrcg.errors import ImageError, IntegrityError, NotFoundError, UsageError
from mrcg.metrics.order import HitOrder
from mrcg.releases.release import Release, read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.retrieval.search import AllowAll
from mrcg.storage.store import Store


@pytest.fixture(scope="module")
def pipeline(library_store):
    return LocalPipeline.open(library_store)


@pytest.fixture
def scan(scans):
    return sorted(scans.rglob("*.png"))[0].read_bytes()


def test_a_gallery_scan_finds_itself_first_in_ann_order(pipeline, scan):
    result = pipeline.search(scan, SearchParams(k=20, rerank=False))
    assert result.hits[0].distance < 1e-3
    assert [hit.ann_rank for hit in result.hits] == list(range(1, 21))
    distances = [hit.distance for hit in result.hits]
    assert distances == sorted(distances)


def in_order(store, **order):
    """The pipeline of a release that serves another order."""
    release = read_release(store).model_copy(update={"order": HitOrder(**order), "typical_distance": 2.0})
    return LocalPipeline(store, release, ServeSettings(), AllowAll())


def test_reranked_hits_are_the_same_images_ordered_by_score(library_store, pipeline, scan):
    ann = pipeline.search(scan, SearchParams(k=20, rerank=False))
    reranked = in_order(library_store, name="score").search(scan, SearchParams(k=20))
    assert {hit.image_id for hit in ann.hits} == {hit.image_id for hit in reranked.hits}
    scores = [hit.score for hit in reranked.hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit.score_rank for hit in reranked.hits] == list(range(1, 21))
    assert (reranked.reranked, reranked.order) == (True, "score")


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.64, 40.96])
def test_in_the_fused_order_a_gallery_scan_comes_first_and_score_and_distance_order_the_others(
    library_store, scan, weight
):
    answer = in_order(library_store, name="fused", distance_weight=weight).search(scan, SearchParams(k=20))
    first, *others = answer.hits
    assert (first.ann_rank, first.rank, answer.order) == (1, 1, "fused")
    assert first.similarity == pytest.approx(1, abs=1e-3)
    median = np.median([hit.distance for hit in answer.hits if hit.distance > 0])
    keys = [np.log(hit.score) - weight * hit.distance / median for hit in others]
    assert keys == pytest.approx(sorted(keys, reverse=True), abs=1e-6)
    assert [hit.similarity for hit in others] == [pytest.approx(2 / (2 + hit.distance)) for hit in others]


def test_every_explanation_can_be_checked_by_leaving_out(library_store, scan):
    answer = in_order(library_store, name="fused", distance_weight=0.16).search(scan, SearchParams(k=20, explain=True))
    explained = {hit.image_id: hit for hit in answer.explanation.hits}
    for hit in answer.hits:
        found = explained[hit.image_id]
        assert (found.rank_change, found.by_distance) == (hit.ann_rank - hit.rank, hit.score_rank - hit.rank)
        assert all(neighbour.moved for neighbour in found.neighbours)
        assert hit.image_id not in {neighbour.image_id for neighbour in found.neighbours}
    named = any(hit.neighbours for hit in answer.explanation.hits)
    assert named <= answer.explanation.graph_changed_order


@pytest.mark.parametrize("count", [1, 3])
def test_lists_of_few_hits_are_ordered_and_explained(library_store, scan, count):
    class Few:
        def allowed(self, principal):
            return np.arange(96) < count

    order = HitOrder(name="fused", distance_weight=0.64)
    release = read_release(library_store).model_copy(update={"order": order})
    answer = LocalPipeline(library_store, release, ServeSettings(), Few()).search(
        scan, SearchParams(k=20, explain=True)
    )
    assert (answer.found, len(answer.hits), answer.order) == (count, count, "fused")
    assert sorted(hit.ann_rank for hit in answer.hits) == list(range(1, count + 1))
    assert [hit.rank for hit in answer.hits] == list(range(1, count + 1))
    assert len(answer.explanation.hits) == len(answer.explanation.nodes) == count
    assert all(np.isfinite([hit.score, hit.distance]).all() for hit in answer.hits)


def test_a_release_of_an_earlier_version_answers_by_score_and_says_no_more_than_it_knows(library_store, scan):
    new = {"order", "served_map", "known_first", "typical_distance", "probability_withheld"}
    old = Release.model_validate_json(read_release(library_store).model_dump_json(exclude=new))
    answer = LocalPipeline(library_store, old, ServeSettings(), AllowAll()).search(
        scan, SearchParams(k=20, explain=True)
    )
    assert answer.order == "score"
    assert [hit.score_rank for hit in answer.hits] == [hit.rank for hit in answer.hits]
    assert {(hit.probability, hit.similarity) for hit in answer.hits} == {(None, None)}
    assert [hit.by_distance for hit in answer.explanation.hits] == [0] * 20, "distance has no part in this order"


@pytest.mark.parametrize("k", [0, -1, 21, 10_000])
def test_k_out_of_range_names_the_limit(pipeline, scan, k):
    with pytest.raises(UsageError, match=f"k = {k}: ask for 1 to 20 hits"):
        pipeline.search(scan, SearchParams(k=k))


def test_a_file_that_is_not_an_image_is_rejected(pipeline):
    with pytest.raises(ImageError, match="not DICOM, NIfTI, MATLAB or one of PNG"):
        pipeline.search(b"no image")


def test_the_size_of_uploads_is_limited(library_store, scan):
    small = LocalPipeline.open(library_store, serve=ServeSettings(max_upload_bytes=100))
    with pytest.raises(ImageError, match="the limit is 100"):
        small.search(scan)


def test_a_policy_decides_what_can_be_found(library_store, scan):
    class OnlyTheFirstTen:
        def allowed(self, principal):
            return np.arange(96) < 10

    result = LocalPipeline.open(library_store, policy=OnlyTheFirstTen()).search(scan, SearchParams(k=20))
    release = LocalPipeline.open(library_store).release
    ids = Corpus(library_store.artefact("corpus", release.corpus)).scans["image_id"].to_pylist()
    assert {hit.image_id for hit in result.hits} == set(ids[:10])
    assert (result.requested, result.found) == (20, 10)


def test_no_release(store):
    with pytest.raises(NotFoundError):
        LocalPipeline.open(store)


def test_a_damaged_file_is_detected_on_load(scans, tmp_path):
    store = Store(str(tmp_path / "s"))
    release = make_release(store, scans)
    for kind, version in release.pins.items():
        if kind in ("encoders", "indexes", "rerankers"):
            artefact = store.artefact(kind, version)
            name = artefact.names()[0]
            good = artefact.read_bytes(name)
            store.write_bytes(artefact.relative(name), good[:-1] + bytes([good[-1] ^ 1]))
            with pytest.raises(IntegrityError, match="does not match its manifest"):
                LocalPipeline.open(store)
            store.write_bytes(artefact.relative(name), good)
    assert LocalPipeline.open(store).release == release


def test_a_single_image_is_read_and_checked(library_store, pipeline, scans):
    corpus = Corpus(library_store.artefact("corpus", pipeline.release.corpus))
    ids = corpus.scans["image_id"].to_pylist()
    for place, grey in corpus.images([0, 50, 95]):
        assert (corpus.image(ids[[0, 50, 95][place]]) == grey).all()
    with pytest.raises(NotFoundError, match="no image nobody"):
        corpus.image("nobody")
