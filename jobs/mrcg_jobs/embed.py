"""Embed the corpus: Ray Data over its files, with actors that hold the model."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data

from mrcg import schemas
from mrcg.corpus import IMAGES, Corpus, images_in
from mrcg.errors import MrcgError
from mrcg.imaging.slices import resize
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import carry, cpus_each, each_row, own_errors

if TYPE_CHECKING:
    from mrcg.encoder.embedder import Embedder

#: Images resized and embedded at a time: bounds the memory of an actor whatever the size of a file.
SLICE = 256


class _EmbedFile:
    """Embeds one file of the corpus. Batches are cut within a file, so its bytes never depend on the others."""

    def __init__(
        self, store: str, corpus: str, encoder: str, output: str, batch_size: int, threads: int, gpu: bool
    ) -> None:
        self._store = Store(store)
        self._corpus = self._store.artefact("corpus", corpus)
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
    def _rows(self) -> dict[str, list[int]]:
        return Corpus(self._corpus).rows_by_file()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._embed(row)
        except MrcgError as error:
            return carry(error)

    def _embed(self, row: dict[str, Any]) -> dict[str, Any]:
        images = images_in(self._corpus.read_bytes(row["file"]), self._rows[row["file"]])
        side, ids, parts = self._embedder.input_size, list[str](), []
        while some := list(itertools.islice(images, SLICE)):
            pixels = np.stack([resize(grey, side) for _, grey in some])
            ids += [ident for ident, _ in some]
            parts.append(self._embedder.embed(pixels, self._batch_size).astype(np.float16))
        vectors = np.concatenate(parts)
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
