"""Embed the corpus: Ray Data over its files, with actors that hold the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mrcg.corpus.embeddings import embedding_file, files_of, reusable
from mrcg.corpus.reader import IMAGES, Corpus, read_scans
from mrcg.errors import MrcgError
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output

if TYPE_CHECKING:
    from mrcg.encoder.embedder import Embedder


class _EmbedFile:
    """Embeds one file of the corpus. Batches are cut within a file, so its bytes never depend on the others."""

    def __init__(
        self, store: str, corpus: str, encoder: str, output: str, batch_size: int, threads: int, gpu: bool
    ) -> None:
        self._store = Store(store)
        self._version = corpus
        self._encoder = encoder
        self._output = output
        self._batch_size = batch_size
        self._threads = threads
        self._device = "cuda" if gpu else "cpu"

    @cached_property
    def _embedder(self) -> Embedder:
        # Opened with the first file: an error in an actor's constructor comes out of Ray without its type.
        import torch

        from mrcg.encoder.embedder import Embedder

        torch.set_num_threads(self._threads)
        return Embedder.open(self._store.artefact("encoders", self._encoder), self._device)

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self._store.artefact("corpus", self._version))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._embed(row)
        except MrcgError as error:
            from mrcg_jobs.ray_runtime.cluster import carry

            return carry(error)

    def _embed(self, row: dict[str, Any]) -> dict[str, Any]:
        ids, vectors = self._embedder.embed_images(self._corpus.images_of(row["file"]), self._batch_size)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"image_id": ids, "embedding": column}, schema=schemas.embeddings(vectors.shape[1]))
        name = embedding_file(row["file"])
        entry = write_output(self._store, self._output, name, schemas.to_ipc(table))
        return {**entry, "images": len(vectors), "dim": vectors.shape[1]}


def run(job: Job) -> Outcome:
    """Make the embeddings: one Arrow file for each file of the corpus, in its order.

    What an earlier version by the same encoder has is not embedded again.
    """
    found, done = _reused(job)
    there = {entry.name for entry in found}
    files = [name for name in job.inputs["corpus"].names(IMAGES) if embedding_file(name) not in there]
    dim = None if "embeddings" not in job.inputs else int(job.inputs["embeddings"].manifest.counts["dim"])
    if files:
        made, new, dim = _embed(job, files, done)
        found, done = found + made, done + new
    fingerprint = job.inputs["encoders"].manifest.counts["fingerprint"]
    return Outcome({"images": done, "dim": dim, "fingerprint": fingerprint}, found)


def _reused(job: Job) -> tuple[list[FileEntry], int]:
    """Files that an earlier version has, and the images in them."""
    base = job.inputs.get("embeddings")
    if base is None:
        return [], 0
    scans = read_scans(job.inputs["corpus"], ["image_id", "file"])
    ids, start, images = scans["image_id"].combine_chunks(), 0, 0
    kept: list[FileEntry] = []
    for file in files_of(scans):
        found = reusable(base, file.name, ids.slice(start, file.rows))
        start += file.rows
        if found is not None:
            kept.append(job.attempt.write(file.name, found) if isinstance(found, bytes) else found)
            images += file.rows
    return kept, images


def _embed(job: Job, names: Sequence[str], before: int) -> tuple[list[FileEntry], int, int]:
    """Embed files of the corpus on the cluster; their entries, images and the length of an embedding."""
    import ray.data

    from mrcg_jobs.ray_runtime.cluster import cpus_each, each_row, own_errors

    compute, files = job.config.compute, [{"file": name} for name in names]
    share = cpus_each(compute.embed_actors)
    job.progress(0, 0, "loading the encoder")
    dataset = ray.data.from_items(files, override_num_blocks=len(files)).map(
        _EmbedFile,
        fn_constructor_args=(
            job.store.url,
            job.step.inputs["corpus"],
            job.step.inputs["encoders"],
            job.attempt.output,
            job.config.embed.batch_size,
            int(share),
            compute.use_gpu,
        ),
        compute=ray.data.ActorPoolStrategy(size=compute.embed_actors),
        num_cpus=share,
        num_gpus=1 if compute.use_gpu else None,
    )
    total, rows, done = int(job.inputs["corpus"].manifest.counts["images"]), [], before
    with own_errors():
        for row in each_row(dataset):
            rows.append(row)
            done += row["images"]
            job.progress(done, total, "images embedded")
    return entries(rows), done - before, int(rows[0]["dim"])
