"""An erasure ends whatever lies in the cache of this node, and what is kept there of somebody goes."""

import pytest
from tests import erasure_factories
from tests.erasure_factories import SIGNER, eraser, pseudonym

from mrcg.erasure.records import ErasureTarget, check_receipt
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.privacy.suppression import PATIENT, suppressed
from mrcg.storage.cache import Cache
from mrcg.storage.store import Store

PATIENT_ID = "PH-glioma_tumor-0-1"


@pytest.fixture
def store(tmp_path):
    write_samples(tmp_path / "scans", 32, 1, SampleFormat.dicom)
    made = Store(str(tmp_path / "store"))
    erasure_factories.make_unreleased(made, tmp_path / "scans", erasure_factories.config_of_patients())
    return made


def test_initial_weights_in_the_cache_do_not_keep_an_erasure_from_its_end(store, tmp_path, monkeypatch):
    """Initial weights that were fetched once lie in a folder of the cache, beside copies of the store's files."""
    cache = tmp_path / "cache"
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / "0123456789ab-vgg16.pth").write_bytes(b"weights")
    (cache / "link").symlink_to(tmp_path / "scans")
    (cache / "NOTES").write_text("not ours")
    monkeypatch.setenv("MRCG_CACHE", str(cache))
    corpus = store.artefact("corpus", store.versions("corpus")[0])
    entry = next(file for file in corpus.manifest.files if file.name.startswith("images/"))
    Cache.of_this_node().put(entry.sha256, corpus.read_bytes(entry.name))
    assert (cache / entry.sha256).exists()

    target = ErasureTarget(kind=PATIENT, value=pseudonym(PATIENT_ID))
    signed = eraser(store).erase(target)

    assert check_receipt(store, signed, SIGNER.public_key, suppressed(store)).holds
    assert signed.receipt.scans == 4
    assert {path.name for path in cache.iterdir()} == {"weights", "link", "NOTES"}
    assert (cache / "weights" / "0123456789ab-vgg16.pth").read_bytes() == b"weights"
    assert eraser(store).erase(target) == signed, "a second time gives the same receipt"
