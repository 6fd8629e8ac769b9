"""Embed the corpus: Ray Data maps its files over actors that hold the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mrcg.config.settings import EmbedSettings
from mrcg.corpus.embeddings import embedding_file, files_of, reusable_file
from mrcg.corpus.features import StoredFeatures
from mrcg.corpus.reader import IMAGES, Corpus, read_scans
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import FACTS, TENSORS, facts_in, facts_of
from mrcg.errors import MrcgError, to_row
from mrcg.hashing import draw
from mrcg.stages.counts import CorpusCounts, EmbeddingCounts
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output

if TYPE_CHECKING:
    from mrcg.encoder.embedder import Embedder

#: Scans of the training part that the principal components are fitted on, at most, and that the spread of the trained
#: part is measured on: the former takes a thumbnail each, the latter a pass of the network.
MAX_FIT_SCANS, SPREAD_SCANS = 4096, 256


@dataclass(frozen=True)
class _EmbedWork:
    """What an actor needs.

    Attributes:
        store: URL of the store.
        corpus, encoder: versions.
        features: version of the stored trunk features; None if the trunk is run.
        output: folder of the attempt's output.
        appearance: content of ``appearance.safetensors``; None without an appearance part.
        batch_size: images embedded at a time.
        threads: compute threads.
        gpu: whether the encoder runs on one.
    """

    store: str
    corpus: str
    encoder: str
    output: str
    features: str | None
    appearance: bytes | None
    batch_size: int
    threads: int
    gpu: bool


class _EmbedFile:
    """Embeds one file of the corpus. No batch spans two files, so the bytes of a file do not depend on other files."""

    def __init__(self, work: _EmbedWork) -> None:
        self._work = work
        self._store = Store(work.store)

    @cached_property
    def _embedder(self) -> Embedder:
        # Opened on first use: Ray loses the type of an error that an actor's constructor raises.
        import torch

        from mrcg.encoder.appearance import Appearance
        from mrcg.encoder.embedder import Embedder

        work = self._work
        torch.set_num_threads(work.threads)
        appearance = None if work.appearance is None else Appearance.from_bytes(work.appearance)
        encoder = self._store.artefact("encoders", work.encoder)
        return Embedder.open(encoder, "cuda" if work.gpu else "cpu", appearance)

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self._store.artefact("corpus", self._work.corpus))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._embed(row)
        except MrcgError as error:
            return to_row(error)

    def _embed(self, row: dict[str, Any]) -> dict[str, Any]:
        work, features = self._work, None
        if work.features is not None:
            features = StoredFeatures(self._store.artefact("features", work.features)).of_file(row["file"])
        ids, vectors = self._embedder.embed_images(self._corpus.images_of(row["file"]), work.batch_size, features)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"image_id": ids, "embedding": column}, schema=schemas.embeddings(vectors.shape[1]))
        name = embedding_file(row["file"])
        entry = write_output(self._store, self._work.output, name, schemas.to_ipc(table))
        return {**entry, "images": len(vectors)}


def run(job: Job) -> Outcome:
    """Embed the corpus: one Arrow file for each of its pixel files, with rows in the same order.

    Scans that an earlier version by the same encoder has are not embedded again.
    """
    files, images = _reused(job)
    reused_names = {entry.name for entry in files}
    pending = [name for name in job.inputs["corpus"].names(IMAGES) if embedding_file(name) not in reused_names]
    described = _described(job)
    if pending:
        new_files, new_images = _embed(job, pending, images, described.get(TENSORS))
        files, images = files + new_files, images + new_images
    base = job.inputs.get("embeddings")
    facts = facts_of(described, job.inputs["encoders"]) if base is None else facts_in(base.manifest)
    entries = [job.attempt.write(name, data) for name, data in described.items()]
    return Outcome(EmbeddingCounts(images=images, **facts.model_dump()), [*files, *entries])


def _described(job: Job) -> Mapping[str, bytes]:
    """Return the files that describe the appearance part: those of an earlier version, or fitted now; or none."""
    base = job.inputs.get("embeddings")
    if base is not None:
        # Refitted, the new vectors could not be compared with those of the earlier version.
        return {name: base.read_bytes(name) for name in (FACTS, TENSORS) if name in base.names()}
    if not job.config.embed.appearance.components:
        return {}
    job.progress(0, 0, "fitting the appearance part")
    work = FitAppearance(job.store.url, dict(job.step.inputs), job.config.embed)
    gpu = job.config.compute.use_gpu
    return next(job.executor.map(work, [gpu], gpus_each=1 if gpu else 0))


@dataclass(frozen=True)
class FitAppearance:
    """Fits the appearance part on scans of the training part."""

    store: str
    inputs: Mapping[str, str]
    settings: EmbedSettings

    def __call__(self, gpu: bool) -> Mapping[str, bytes]:
        """Return the files that describe the appearance part; ``gpu`` is whether the encoder runs on one."""
        from mrcg.encoder.appearance import appearance_files, fit_appearance, thumbnails
        from mrcg.encoder.embedder import Embedder

        store = Store(self.store)
        artefacts = {kind: store.artefact(kind, version) for kind, version in self.inputs.items()}
        corpus, split = Corpus(artefacts["corpus"]), Split(artefacts["splits"])
        embedder = Embedder.open(artefacts["encoders"], "cuda" if gpu else "cpu")
        ids = corpus.scans["image_id"]
        drawn = sorted(np.flatnonzero(split.train).tolist(), key=lambda row: draw(0, "appearance", ids[row].as_py()))
        # In the order of the files, so that each block reads few of them.
        drawn = [*sorted(drawn[:SPREAD_SCANS]), *sorted(drawn[SPREAD_SCANS:MAX_FIT_SCANS])]
        trained = embedder.embed(corpus.pixels(drawn[:SPREAD_SCANS], embedder.input_size), self.settings.batch_size)
        blocks = [
            drawn[start : start + SPREAD_SCANS] for start in range(0, min(len(drawn), MAX_FIT_SCANS), SPREAD_SCANS)
        ]
        small = np.concatenate([thumbnails(corpus.pixels(block, embedder.input_size)) for block in blocks])
        appearance = fit_appearance(small, trained, self.settings.appearance)
        return appearance_files(appearance, embedder.fingerprint, trained.shape[1])


def _reused(job: Job) -> tuple[list[FileEntry], int]:
    """Return the files that an earlier version can supply, and the number of images in them."""
    base = job.inputs.get("embeddings")
    if base is None:
        return [], 0
    scans = read_scans(job.inputs["corpus"], ["image_id", "file"])
    ids, start, images = scans["image_id"].combine_chunks(), 0, 0
    reused: list[FileEntry] = []
    for file in files_of(scans):
        reusable = reusable_file(base, file.name, ids.slice(start, file.rows))
        start += file.rows
        if reusable is not None:
            reused.append(job.attempt.write(file.name, reusable) if isinstance(reusable, bytes) else reusable)
            images += file.rows
    return reused, images


def _embed(job: Job, names: Sequence[str], before: int, appearance: bytes | None) -> tuple[list[FileEntry], int]:
    """Embed files of the corpus on the cluster.

    Args:
        job: the job of the stage.
        names: pixel files to embed.
        before: images that an earlier version supplied, for the progress.
        appearance: content of ``appearance.safetensors``; None without an appearance part.

    Returns:
        Entries of the new files, and the number of images in them.
    """
    from mrcg_jobs.ray_runtime.files import each_file

    job.progress(0, 0, "loading the encoder")

    def work(threads: int) -> _EmbedWork:
        return _EmbedWork(
            store=job.store.url,
            corpus=job.step.inputs["corpus"],
            encoder=job.step.inputs["encoders"],
            output=job.attempt.output,
            features=job.step.inputs.get("features"),
            appearance=appearance,
            batch_size=job.config.embed.batch_size,
            threads=threads,
            gpu=job.config.compute.use_gpu,
        )

    total, rows, done = job.inputs["corpus"].manifest.counts_as(CorpusCounts).images, [], before
    for row in each_file(names, _EmbedFile, work, job.config.compute):
        rows.append(row)
        done += row["images"]
        job.progress(done, total, "images embedded")
    return entries(rows), done - before
