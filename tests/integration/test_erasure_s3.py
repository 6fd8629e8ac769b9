"""An erasure from a store on S3: its bucket, and the caches that nodes have of it."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from tests import erasure_factories, factories
from tests.erasure_factories import eraser, found, person_of, pseudonym

from mrcg.corpus.reader import Corpus
from mrcg.erasure.records import ErasureTarget, check_receipt
from mrcg.index.sharded_index import ShardedIndex
from mrcg.privacy.suppression import PATIENT, suppressed
from mrcg.storage.filesystem import open_url
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = erasure_factories.config_of_patients()
JANE, JOE = "PH-glioma_tumor-1-1", "PH-no_tumor-2-1"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """URL of a bucket; the environment names its server and this node's cache to whoever asks."""
    port = factories.free_port()
    words = [sys.executable, "-m", "tests.s3_server", str(port), "0"]
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "MRCG_CACHE": str(tmp_path_factory.mktemp("cache")),
        }.items():  # fmt: skip
            patch.setenv(name, value)
        assert server.stdout.readline() == "ready\n"
        fsspec.filesystem("s3").clear_instance_cache()
        open_url("s3://clinic")[0].mkdir("clinic")
        yield "s3://clinic"
    server.kill()
    server.wait()
    server.stdout.close()
    fsspec.filesystem("s3").clear_instance_cache()


def everything_of(store, folder):
    """All objects of a store as files of a folder."""
    for name in [f"{kind}/{one}" for kind in store.listdir("") for one in store.files(kind)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, folder / name)
    return folder


def read_through(store):
    """Read all that services and jobs read, so that this node's cache has it."""
    for version in store.versions("corpus"):
        corpus = Corpus(store.artefact("corpus", version))
        assert len(list(corpus.images(range(len(corpus))))) == len(corpus)
    for version in store.versions("indexes"):
        ShardedIndex.open(store.artefact("indexes", version))
    for version in store.versions("embeddings"):
        artefact = store.artefact("embeddings", version)
        assert all(artefact.on_disk(name).exists() for name in artefact.names())


def test_neither_the_bucket_nor_a_cache_has_anything_of_them(bucket, tmp_path):
    store, cache = Store(f"{bucket}/store"), Path(os.environ["MRCG_CACHE"])
    erasure_factories.write_patients(tmp_path / "scans", 96)
    made = erasure_factories.make_unreleased(store, tmp_path / "scans", CONFIG)
    read_through(store)
    people = {
        raw: person_of(everything_of(store, tmp_path / "before"), "patient", pseudonym(raw)) for raw in (JANE, JOE)
    }
    for one in people.values():
        assert {"pixels", "fp16", "fp32", "patient"} <= set(found(tmp_path / "before", one))
        assert {"pixels", "fp16", "fp32", "patient"} <= set(found(cache, one))

    # Joe left the source, and the first versions were swept: only this node remembers what was in them.
    keys = erasure_factories.scans_of(store, made["corpus"], "patient", "source_key")
    later = erasure_factories.grown(store, made, CONFIG, {key for one, key in keys if one == pseudonym(JOE)})
    read_through(store)
    erasure_factories.swept(store, made, later)
    gone = found(everything_of(store, tmp_path / "swept"), people[JOE])
    assert "patient" not in gone
    assert {"pixels", "fp16"} <= set(gone)

    # Joe first: rows that no table lists any more go with any erasure, and then nothing of him is left to be found.
    for raw in (JOE, JANE):
        kept = {path.name for path in cache.iterdir()}
        signed = eraser(store).erase(ErasureTarget(kind=PATIENT, value=pseudonym(raw)))
        assert found(everything_of(store, tmp_path / f"after-{raw}"), people[raw]) == {}
        assert found(cache, people[raw]) == {}
        assert check_receipt(store, signed, None, suppressed(store)).holds
        assert kept & {path.name for path in cache.iterdir()}, "what others need stays"
    after = everything_of(store, tmp_path / "at last")
    other = person_of(after, "patient", pseudonym("PH-pituitary_tumor-0-1"))
    assert len(other.words["image_id"]) == 4
