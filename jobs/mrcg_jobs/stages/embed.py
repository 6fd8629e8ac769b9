"""Embed the corpus: Ray Data maps its files over actors that hold the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mrcg.corpus.embeddings import embedding_file, files_of, reusable_file
from mrcg.corpus.reader import IMAGES, Corpus, read_scans
from mrcg.errors import MrcgError, to_row
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output

if TYPE_CHECKING:
    from mrcg.encoder.embedder import Embedder


class _EmbedFile:
    """Embeds one file of the corpus. No batch spans two files, so the bytes of a file do not depend on other files."""

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
        # Opened on first use: Ray loses the type of an error that an actor's constructor raises.
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
            return to_row(error)

    def _embed(self, row: dict[str, Any]) -> dict[str, Any]:
        ids, vectors = self._embedder.embed_images(self._corpus.images_of(row["file"]), self._batch_size)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"image_id": ids, "embedding": column}, schema=schemas.embeddings(vectors.shape[1]))
        name = embedding_file(row["file"])
        entry = write_output(self._store, self._output, name, schemas.to_ipc(table))
        return {**entry, "images": len(vectors), "dim": vectors.shape[1]}


def run(job: Job) -> Outcome:
    """Embed the corpus: one Arrow file for each of its pixel files, with rows in the same order.

    Scans that an earlier version by the same encoder has are not embedded again.
    """
    files, images = _reused(job)
    reused_names = {entry.name for entry in files}
    pending = [name for name in job.inputs["corpus"].names(IMAGES) if embedding_file(name) not in reused_names]
    dim = None if "embeddings" not in job.inputs else int(job.inputs["embeddings"].manifest.counts["dim"])
    if pending:
        new_files, new_images, dim = _embed(job, pending, images)
        files, images = files + new_files, images + new_images
    fingerprint = job.inputs["encoders"].manifest.counts["fingerprint"]
    return Outcome({"images": images, "dim": dim, "fingerprint": fingerprint}, files)


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


def _embed(job: Job, names: Sequence[str], before: int) -> tuple[list[FileEntry], int, int]:
    """Embed files of the corpus on the cluster.

    Args:
        job: the job of the stage.
        names: pixel files to embed.
        before: images that an earlier version supplied, for the progress.

    Returns:
        Entries of the new files, the number of images in them and the dimension of an embedding.
    """
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
