"""A stage is one entry in the registry and one module: it runs, has a command, is verified, listed, updated and swept."""

import json
import shutil
from dataclasses import replace

import pytest
from tests.factories import publish_corpus, tiny_config
from tests.unit.cli.test_main import run
from tests.unit.pipeline.toy_stage import STAGE, LabelCounts

from mrcg.cli.console import short_counts
from mrcg.corpus.sources import open_source, survey
from mrcg.erasure import discovery
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.pipeline.plan import Ancestry, plan
from mrcg.pipeline.update import ReleaseUpdate
from mrcg.releases.release import read_release
from mrcg.releases.verify import verify_store
from mrcg.stages import registry
from mrcg.storage.catalog import all_manifests
from mrcg.storage.manifest import derive_version
from mrcg.storage.store import Store
from mrcg_jobs.runner import run_stages


@pytest.fixture
def toy(monkeypatch):
    """The toy stage before the report, which reads what it makes."""
    evaluate = registry.stage_of("reports")
    reads = replace(evaluate, inputs=lambda config: (*evaluate.inputs(config), STAGE.kind))
    stages = [reads if stage is evaluate else stage for stage in registry.STAGES]
    monkeypatch.setattr(registry, "STAGES", (*stages[: stages.index(reads)], STAGE, *stages[stages.index(reads) :]))


@pytest.fixture
def corpus(toy, scans, tmp_path):
    """A store with a corpus, its source and the planned steps."""
    store, config = Store(str(tmp_path / "store")), tiny_config()
    source = survey(open_source(str(scans)))
    steps = plan(config, source, "none")
    publish_corpus(store, steps[0], scans, config)
    return store, config, source, steps


def test_it_runs_where_its_entry_is_and_what_reads_it_has_a_version_of_its_own(corpus):
    store, config, source, steps = corpus
    assert [step.name for step in steps][-2:] == ["count-labels", "evaluate"]
    assert steps[-1].inputs["labels"] == steps[-2].version
    (made,) = run_stages(store, config, source, steps[-2:-1], None, lambda _: silent, LocalExecutor())
    assert (made.ran, made.kind, short_counts(made.counts)) == (True, "labels", "labels 4")
    manifest = store.manifest("labels", made.version)
    assert manifest.counts_as(LabelCounts).labels == 4
    counted = json.loads(store.artefact("labels", made.version).read_bytes("labels.json"))
    assert sum(counted.values()) == 96
    assert [stage.ran for stage in run_stages(store, config, source, steps[-2:-1], None, lambda _: silent)] == [False]


def test_it_is_verified_and_listed_and_an_erasure_takes_it(corpus, capsys):
    store, config, source, steps = corpus
    list(run_stages(store, config, source, steps[-2:-1], None, lambda _: silent, LocalExecutor()))
    assert verify_store(store, silent).problems == ()
    listed = json.loads(run(capsys, "store", "ls", "--store", store.url, "--json")[1])
    assert {"kind": "labels", "version": steps[-2].version, "counts": {"labels": 4}} in listed
    key = ("labels", steps[-2].version)
    assert key in discovery.affected_versions(all_manifests(store), [("corpus", steps[0].version)])
    path = f"{store.manifest(*key).folder}/labels.json"
    store.write_bytes(path, b"{}")
    assert any("labels" in problem for problem in verify_store(store, silent).problems)


def test_it_has_a_command(toy, capsys):
    code, out, _ = run(capsys, "count-labels", "--help")
    assert (code, "Count the labels of a corpus." in out) == (0, True)
    assert "count-labels" in run(capsys, "--help")[1]


def test_a_reindex_and_an_erasure_make_it_again(library_store, scans, tmp_path, toy):
    store = Store(shutil.copytree(library_store.root, tmp_path / "store").as_posix())
    release = read_release(store)
    labels = derive_version("labels", {"seed": 1}, {"corpus": release.corpus})
    # The release's report was made without the toy: here it has read one.
    update = ReleaseUpdate.of(store, release)
    made = update.manifests["splits"].model_copy(update={"kind": "labels", "version": labels, "settings": {"seed": 1}})
    update = ReleaseUpdate(update.config, release, {**update.manifests, "labels": made})
    source = survey(open_source(str(scans)))
    grown = update.steps(replace(source, listing_digest="another"), Ancestry(base=release.corpus))
    names = ["ingest", "split", "embed", "build-index", "build-graphs", "count-labels", "evaluate"]
    assert [step.name for step in grown] == names
    assert grown[-2].inputs == {"corpus": grown[0].version}
    assert grown[-1].inputs["labels"] == grown[-2].version
    assert [step.name for step in update.purge_steps("a list")] == names
