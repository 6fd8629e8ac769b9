"""Embed the corpus: Ray Data over its files, with actors that hold the model."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data

from mrcg import schemas
from mrcg.corpus import IMAGES, Corpus
from mrcg.errors import MrcgError
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import carry, cpus_each, each_row, own_errors

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
            return carry(error)

    def _embed(self, row: dict[str, Any]) -> dict[str, Any]:
        ids, vectors = self._embedder.embed_images(self._corpus.images_of(row["file"]), self._batch_size)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"image_id": ids, "embedding": column}, schema=schemas.embeddings(vectors.shape[1]))
        name = row["file"].replace(IMAGES, "embeddings/").replace(".parquet", ".arrow")
        entry = write_output(self._store, self._output, name, schemas.to_ipc(table))
        return {**entry, "images": len(vectors), "dim": vectors.shape[1]}


def run(job: Job) -> Outcome:
    """Make the embeddings: one Arrow file for each file of the corpus, in its order."""
    compute = job.config.compute
    files = [{"file": name} for name in job.inputs["corpus"].names(IMAGES)]
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
    total, rows, done = int(job.inputs["corpus"].manifest.counts["images"]), [], 0
    with own_errors():
        for row in each_row(dataset):
            rows.append(row)
            done += row["images"]
            job.progress(done, total, "images embedded")
    fingerprint = job.inputs["encoders"].manifest.counts["fingerprint"]
    return Outcome({"images": done, "dim": int(rows[0]["dim"]), "fingerprint": fingerprint}, entries(rows))
