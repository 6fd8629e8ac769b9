"""Source and store on S3, over HTTP, with 5 % of the requests failing: the corpus is the local one."""

import json
import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import fsspec
import pytest
from tests import factories
from tests.clusters import ray_cluster

from mrcg.corpus.reader import Corpus, read_quarantine
from mrcg.corpus.report import newest_corpus
from mrcg.errors import AlreadyExistsError
from mrcg.imaging.samples import write_samples
from mrcg.storage.filesystem import open_url
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ("--set", "ingest.file_bytes=65536")
FAILING = 0.05


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """URL of an S3 server; the environment names it to this process and to those that it starts."""
    port = factories.free_port()
    words = [sys.executable, "-m", "tests.s3_server", str(port), str(FAILING)]
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    )
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "MRCG_CACHE": str(tmp_path_factory.mktemp("cache")),
        }.items():  # fmt: skip
            patch.setenv(name, value)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        open_url("s3://alliance")[0].mkdir("alliance")
        yield url
    server.kill()
    server.wait()
    server.stdout.close()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def ingest(endpoint):
    """Ingests on a cluster whose nodes reach that server; the manifest's facts."""
    with ray_cluster() as address:
        yield partial(ingested, address)


def ingested(address, source, store):
    done = factories.mrcg("ingest", "--source", source, "--store", store, "--ray", address, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["stages"][0]


def content(url):
    store = Store(url)
    corpus = Corpus(store.artefact("corpus", newest_corpus(store).version))
    names = (
        "image_id",
        "file",
        "file_row",
        "label",
        "group_id",
        "cluster_id",
        "source_key",
        "pixel_hash",
        "difference_hash",
    )
    files = {entry.name: entry.sha256 for entry in corpus.artefact.manifest.files if entry.name.startswith("images/")}
    refused = read_quarantine(corpus.artefact).select(["source_key", "reason"]).to_pylist()
    return corpus, files, corpus.scans.select(names).to_pylist(), refused


def test_the_corpus_on_a_failing_s3_is_the_local_one(endpoint, ingest, tmp_path):
    source = tmp_path / "scans"
    write_samples(source, 200, seed=1)
    (source / "bad.png").write_text("words")
    fs, _ = open_url("s3://alliance")
    fs.put(f"{source}/", "alliance/scans/", recursive=True)
    ingest(str(source), str(tmp_path / "store"))
    remote = ingest("s3://alliance/scans", "s3://alliance/store")
    assert remote["counts"]["files_read"] == 201
    _, files, scans, refused = content(str(tmp_path / "store"))
    corpus, remote_files, remote_scans, remote_refused = content("s3://alliance/store")
    assert (remote_files, remote_scans, remote_refused) == (files, scans, refused)
    assert int(urllib.request.urlopen(f"{endpoint}/failed").read()) > 10, "requests did fail"
    # Again: nothing to do. Grown: only what is new.
    assert not ingest("s3://alliance/scans", "s3://alliance/store")["ran"]
    write_samples(tmp_path / "more", 4, seed=2)
    fs.put(f"{tmp_path}/more/", "alliance/scans/more/", recursive=True)
    assert ingest("s3://alliance/scans", "s3://alliance/store")["counts"]["files_read"] == 4
    # One image is read alone, many through this node's cache.
    first = corpus.scans["image_id"][0].as_py()
    (_, grey), *_ = corpus.images([0])
    assert (corpus.image(first) == grey).all()
    kept = sorted(path.name for path in Path(os.environ["MRCG_CACHE"]).iterdir())
    assert corpus.artefact.entry(corpus.scans["file"][0].as_py()).sha256 in kept


def test_of_two_creators_one_wins_also_where_answers_are_lost(endpoint):
    store = Store("s3://alliance/races")
    for n in range(60):
        store.create(f"{n}.json", b"mine")
        with pytest.raises(AlreadyExistsError):
            store.create(f"{n}.json", b"yours")
        assert store.read_bytes(f"{n}.json") == b"mine"
