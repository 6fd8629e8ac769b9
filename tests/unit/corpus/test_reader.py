import pyarrow as pa
import pytest
from tests import factories

from mrcg.corpus.reader import SCANS, Corpus, read_scans
from mrcg.corpus.sources import open_source, survey
from mrcg.imaging.samples import SampleFormat, write_manifest, write_samples
from mrcg.pipeline.plan import plan
from mrcg.storage import schemas
from mrcg.storage.store import Store


@pytest.fixture
def corpus(tmp_path):
    """A corpus of phantoms with a manifest, and a function that publishes it elsewhere with another scans table."""
    folder, config = tmp_path / "scans", factories.tiny_config()
    write_samples(folder, 8, 1)
    source = str(write_manifest(folder, "manifest.csv", 8, 1, SampleFormat.png))
    step = plan(config, survey(open_source(source)), "none")[0]
    first = Store(str(tmp_path / "first"))
    made = first.artefact("corpus", factories.publish_corpus(first, step, source, config).version)

    def changed(change):
        files = {name: made.read_bytes(name) for name in made.names()}
        files |= {name: schemas.to_parquet(change(schemas.from_parquet(data))) for name, data in made.iter_files(SCANS)}
        second = Store(str(tmp_path / "second"))
        return second.artefact("corpus", factories.publish(second, step, files, made.manifest.counts).version)

    return made, changed


def test_lesions_of_a_manifest_are_in_the_scans(corpus):
    scans = read_scans(corpus[0])
    assert scans.schema == schemas.SCANS
    for label, *facts in zip(*(scans[name].to_pylist() for name in ("label", *schemas.LESION)), strict=True):
        assert all((fact is None) == (label == "no_tumor") for fact in facts)
    assert set(scans["plane"].to_pylist()) == {"axial"}


def test_a_corpus_without_the_columns_of_lesions_is_read(corpus):
    older = corpus[1](lambda table: table.drop(list(schemas.LESION)))
    scans = read_scans(older)
    assert scans.schema == schemas.SCANS
    assert all(scans[name].null_count == scans.num_rows for name in schemas.LESION)
    some = read_scans(older, ["lesion_x", "label"])
    assert some.schema == pa.schema([schemas.SCANS.field(name) for name in ("lesion_x", "label")])
    assert read_scans(older, ["label"]).equals(Corpus(older).scans.select(["label"]))
