"""What changes a store, done in one process without Ray: functions that a child of ``killing`` calls by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.manifests import counts_of, make_manifest

from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.corpus.assembly import assemble_corpus
from mrcg.corpus.embeddings import embedding_file
from mrcg.corpus.ingestion import ImagesWriter, Rules, ingest_files
from mrcg.corpus.listing import file_digests, known_files
from mrcg.corpus.reader import IMAGES
from mrcg.corpus.sources import Source, open_source, survey
from mrcg.encoder.appearance import TENSORS
from mrcg.encoder.spec import read_spec
from mrcg.erasure.records import ErasureTarget, SignedReceipt
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.imaging.readers import read
from mrcg.pipeline.plan import Ancestry, Step
from mrcg.pipeline.update import ReleaseUpdate
from mrcg.privacy.signing import KEY_BYTES, Signer
from mrcg.privacy.suppression import IMAGE, list_digest
from mrcg.releases.gc import Sweep, sweep
from mrcg.releases.release import Promotion, Release, promote, read_release, rollback
from mrcg.stages.registry import pipeline_stages
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import derive_version
from mrcg.storage.store import Store
from mrcg_jobs.erasure import Eraser
from mrcg_jobs.job import Job, entries
from mrcg_jobs.runner import run_stages
from mrcg_jobs.stages.embed import _described, _EmbedFile, _EmbedWork, _reused

SIGNER = Signer(bytes(range(KEY_BYTES)))
#: Reports that take less time.
QUICK = ("evaluate.bootstrap=100", "evaluate.map_images=1", "evaluate.picture_queries=1")
_STAGE = {stage.kind: stage for stage in pipeline_stages()}
_NOWHERE = Source("", "", 0, 0, False)


def quiet(_: str) -> Callable[..., None]:
    """The progress of a stage that shows nothing."""
    return silent


def index_step(inputs: Mapping[str, str], settings: tuple[str, ...]) -> tuple[Config, Step]:
    """The step that builds an index, or grows one where ``inputs`` names it."""
    config = load_config(None, settings)
    told = _STAGE["indexes"].recorded_settings(config)
    return config, Step(_STAGE["indexes"], derive_version("indexes", told, inputs), told, inputs)


def build(url: str, inputs: Mapping[str, str], settings: tuple[str, ...]) -> None:
    """Build or grow an index."""
    config, step = index_step(inputs, settings)
    for _ in run_stages(Store(url), config, _NOWHERE, [step], None, quiet, LocalExecutor()):
        pass


def reindex_steps(store: Store, source: str) -> tuple[ReleaseUpdate, Source, tuple[Step, ...]]:
    """What ``mrcg reindex`` does for this source, growing from the first release."""
    line = ReleaseUpdate.of(store, read_release(store, 1), QUICK)
    found = survey(open_source(source))
    return line, found, line.steps(found, Ancestry(None, list_digest(store), line.release.corpus))


def reindex(url: str, source: str) -> Promotion:
    """All of a reindex; corpus and embeddings are there already."""
    store = Store(url)
    line, found, steps = reindex_steps(store, source)
    for _ in run_stages(store, line.config, found, steps, None, quiet, LocalExecutor()):
        pass
    return promote(store, steps[-1].version, None)


def as_trained(store: Store) -> None:
    """Let the manifest of the first release's encoder say what a training writes into it."""
    artefact = store.artefact("encoders", read_release(store, 1).encoder)
    counts = {**artefact.manifest.counts.stated(), "fingerprint": read_spec(artefact)[1]}
    changed = artefact.manifest.model_copy(update={"counts": counts_of("encoders", counts)})
    store.write_bytes(f"encoders/{changed.version}/manifest.json", changed.to_bytes())


def read_and_embed(store: Store, source: str) -> None:
    """What a reindex does on Ray: the grown corpus and its embeddings."""
    line, found, steps = reindex_steps(store, source)
    _ingest(store, line, found, steps[0])
    step = next(step for step in steps if step.stage.name == "embed")
    inputs = {kind: store.artefact(kind, version) for kind, version in step.inputs.items()}
    with begin(store, "embeddings", step.version) as attempt:
        job = Job(store, line.config, found, step, inputs, attempt, LocalExecutor(), silent)
        (kept, _), described = _reused(job), _described(job)
        kept += [attempt.write(name, data) for name, data in described.items()]
        there = {entry.name for entry in kept}
        work = _EmbedFile(
            _EmbedWork(
                store=store.url,
                corpus=step.inputs["corpus"],
                encoder=step.inputs["encoders"],
                output=attempt.output,
                features=None,
                appearance=described.get(TENSORS),
                batch_size=32,
                threads=1,
                gpu=False,
            )
        )
        names = [name for name in inputs["corpus"].names(IMAGES) if embedding_file(name) not in there]
        files = [*kept, *entries([work({"file": name}) for name in names])]
        counts = inputs["embeddings"].manifest.counts
        attempt.publish(make_manifest("embeddings", step.version, step.settings, step.inputs, counts, files))


def _ingest(store: Store, line: ReleaseUpdate, found: Source, step: Step) -> None:
    base, rules = store.artefact("corpus", line.release.corpus), Rules(line.config.ingest, None, frozenset(), 1)
    opened, known = open_source(found.location), set(known_files(base).tolist())
    files = list(opened.walk())
    digests = file_digests((rules.stored_key(one.key) for one in files), (one.stamp for one in files))
    new = [file for file, one in zip(files, digests.tolist(), strict=True) if one not in known]
    assert 0 < len(new) < len(files)
    with begin(store, "corpus", step.version) as attempt:
        with ImagesWriter(
            lambda name: store.writer(f"{attempt.output}/{name}"), "images/g001-00000", rules.settings
        ) as images:
            segment = ingest_files(new, opened.read, lambda data: read(data, rules.settings), rules, images)
        parts = [(segment.scans, segment.quarantine, segment.files)]
        joined = assemble_corpus(parts, base, digests, rules, attempt.write)
        attempt.publish(make_manifest("corpus", step.version, step.settings, step.inputs, joined.counts, joined.files))


def promote_report(url: str, version: str) -> Promotion:
    """Promote whatever it measured."""
    return promote(Store(url), version, None)


def roll_back(url: str, number: int) -> Release:
    """Make a release current again."""
    return rollback(Store(url), number)


def sweep_old(url: str) -> Sweep:
    """Remove all that the current release does not hold."""
    return sweep(Store(url), keep_releases=1, grace_days=0)


def erase(url: str, image_id: str) -> SignedReceipt:
    """Erase an image."""
    # A folder has no cache; this node's is that of whoever runs the tests.
    eraser = Eraser(Store(url), None, SIGNER, LocalExecutor(), None, quiet, lambda kept: None)
    return eraser.erase(ErasureTarget(kind=IMAGE, value=image_id))
