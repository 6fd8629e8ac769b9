"""``mrcg corpus`` and ``mrcg keys``, and the page and picture behind them."""

import json
import re
import stat

import pytest
from tests import factories
from tests.unit.cli.test_main import run

from mrcg.config.loading import load_config
from mrcg.corpus.sources import open_source, survey
from mrcg.errors import SourceError, UsageError
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.pipeline.ancestry import ancestry_of
from mrcg.pipeline.plan import plan
from mrcg.privacy.pseudonyms import ENVIRONMENT, KEY_DIGITS, Pseudonyms
from mrcg.privacy.signing import ENVIRONMENT as SIGNING
from mrcg.privacy.signing import signer_from_environment
from mrcg.storage.store import Store


@pytest.fixture
def messy(tmp_path):
    """A folder of phantoms with bad files and copies among them, and a store with its corpus."""
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, 24, seed=1)
    factories.add_bad_files(source)
    config = factories.tiny_config()
    step = plan(config, survey(open_source(str(source))), "none")[0]
    manifest = factories.publish_corpus(store, step, source, config)
    store.record_run(manifest, {"started": 1.0})
    return source, store


def test_a_report_counts_what_is_there_and_what_was_refused(messy, capsys):
    source, store = messy
    code, out, _ = run(capsys, "corpus", "report", "--store", store.url, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["by"]["label"] == {
        "glioma_tumor": 6, "meningioma_tumor": 6, "no_tumor": 6, "pituitary_tumor": 6, "rare_tumor": 1,
    }  # fmt: skip
    assert found["reasons"] == {"empty": 1, "not_an_image": 1, "too_many_pixels": 1, "too_small": 1, "truncated": 1}
    assert (found["exact_copies"], found["conflicting_copies"], found["bad_files"]) == (1, 1, 5)
    assert not found["deidentified"]
    _, out, _ = run(capsys, "corpus", "report", "--store", store.url, "--source", str(source))
    assert "truncated: glioma_tumor/truncated.jpg: the image ends early" in out.replace("\n", " ")
    assert re.search(r"by\s+┃ value\s+┃\s+count", out)


def test_a_page_shows_scans_copies_and_refused_files(messy, capsys, tmp_path):
    source, store = messy
    page = tmp_path / "page.html"
    code, _, err = run(capsys, "corpus", "report", "--store", store.url, "--out", str(page), "--json")
    assert (code, "--source adds pictures of quarantined files" in err) == (0, True)
    small = len(page.read_bytes())
    assert run(capsys, "corpus", "report", "--store", store.url, "--source", str(source), "--out", str(page))[0] == 0
    text = page.read_text()
    assert "<caption>Quarantine</caption>" in text
    assert "too_many_pixels" in text
    assert "http" not in text.replace("http-equiv", ""), "a page needs nothing from elsewhere"
    assert len(text) > small


def test_a_report_can_fail_where_too_much_is_bad(messy, capsys):
    code, _, err = run(capsys, "corpus", "report", "--store", messy[1].url, "--max-bad-fraction", "0.05")
    assert code == 1
    assert "5 of 30 files are bad (16.7 %, the limit is 5 %)" in err.replace("\n", " ")
    assert run(capsys, "corpus", "report", "--store", messy[1].url, "--max-bad-fraction", "0.5")[0] == 0


def test_a_report_needs_a_corpus(capsys, tmp_path):
    code, _, err = run(capsys, "corpus", "report", "--store", str(tmp_path))
    assert (code, "has no corpus; create one with `mrcg ingest`" in err) == (1, True)


def test_a_key_is_made_once_for_its_owner_alone(capsys, tmp_path):
    assert re.fullmatch(rf"[0-9a-f]{{{KEY_DIGITS}}}\n", run(capsys, "keys", "new", "--kind", "pseudonym")[1])
    path = tmp_path / "key"
    assert run(capsys, "keys", "new", "--kind", "pseudonym", "--out", str(path))[0] == 0
    key = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, out, err = run(capsys, "keys", "new", "--kind", "pseudonym", "--out", str(path))
    assert (
        code,
        "already exists: a new key would orphan every pseudonym" in " ".join(err.split()),
        path.read_text(),
    ) == (2, True, key)
    assert key.strip() not in out + err
    assert run(capsys, "keys", "new", "--kind", "house")[0] == 2


def test_a_signing_key_is_made_in_the_same_way_and_signs(capsys, tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{64}\n", run(capsys, "keys", "new", "--kind", "signing")[1])
    path = tmp_path / "key"
    code, out, err = run(capsys, "keys", "new", "--kind", "signing", "--out", str(path))
    assert (code, f"set {SIGNING}={path} to use it, and keep a copy in a safe place" in out.replace("\n", " ")) == (
        0,
        True,
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() not in out + err
    monkeypatch.setenv(SIGNING, str(path))
    assert signer_from_environment() is not None
    code, _, err = run(capsys, "keys", "new", "--kind", "signing", "--out", str(path))
    assert (code, "would not verify signatures made with the old key" in err.replace("\n", " ")) == (2, True)


def test_keys_that_cannot_be_made_say_why(capsys, tmp_path):
    code, _, err = run(capsys, "keys", "new", "--kind", "house")
    assert (code, "--kind house: the kinds are pseudonym, signing" in err) == (2, True)
    code, _, err = run(capsys, "keys", "new", "--kind", "signing", "--out", str(tmp_path / "no" / "key"))
    assert (code, "cannot be written: No such file or directory" in err.replace("\n", " ")) == (2, True)
    assert run(capsys, "keys", "new")[0] == 2


def test_formats_that_are_not_written_are_named(capsys, tmp_path):
    code, _, err = run(capsys, "sample", str(tmp_path), "--format", "gif")
    assert (code, "must be one of png, dicom, nifti, mat" in err) == (2, True)


def test_sources_that_name_patients_need_a_key_before_any_work(tmp_path, store, monkeypatch):
    write_samples(tmp_path / "mat", 4, 1, SampleFormat.mat)
    config, source = load_config(), survey(open_source(str(tmp_path / "mat")))
    with pytest.raises(UsageError, match=rf"need a pseudonym key: .* then set {ENVIRONMENT}"):
        ancestry_of(store, config, source, None)
    policy = ancestry_of(store, config, source, Pseudonyms(bytes(32))).policy
    assert policy is not None
    assert "PS3.15" in policy["yardstick"]
    other = ancestry_of(store, config, source, Pseudonyms(bytes(31) + b"1")).policy
    assert (
        plan(config, source, "")[0].version
        != plan(config, source, "", ancestry_of(store, config, source, Pseudonyms(bytes(32))))[0].version
    )
    assert policy != other, "another key is another corpus"


def test_an_empty_manifest_is_an_empty_source(tmp_path):
    (tmp_path / "scans.csv").write_text("path,label\n")
    with pytest.raises(SourceError, match="has no files"):
        survey(open_source(str(tmp_path / "scans.csv")))
