"""Run the frozen trunk of the encoder over the corpus: Ray Data maps its files over actors that hold the trunk.

Modules that import torch are imported by the actors only.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mrcg.config.settings import Config
from mrcg.corpus.features import feature_file
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.errors import MrcgError, to_row
from mrcg.stages.counts import CorpusCounts, FeatureCounts
from mrcg.storage.store import Store
from mrcg_jobs import initial_weights
from mrcg_jobs.job import Job, Outcome, entries

if TYPE_CHECKING:
    from mrcg.arrays import Fp32Vectors
    from mrcg.encoder.model import Encoder
    from mrcg.imaging.slices import Grey


@dataclass(frozen=True)
class _ExtractWork:
    """What an actor needs.

    Attributes:
        store: URL of the store.
        corpus: version.
        attempt: folder of the attempt, with the initial weights.
        config: settings of the trunk.
        threads: compute threads.
    """

    store: str
    corpus: str
    attempt: str
    config: Config
    threads: int


class _ExtractFile:
    """Runs the trunk over one file of the corpus; no batch spans two files, as in embedding."""

    def __init__(self, work: _ExtractWork) -> None:
        self._work = work
        self._store = Store(work.store)

    @cached_property
    def _features_of(self) -> Callable[[Grey], Fp32Vectors]:
        config, device = self._work.config, "cuda" if self._work.config.compute.use_gpu else "cpu"
        size = config.encoder.batch_size
        if config.encoder.trunk_engine == "openvino":
            from mrcg.encoder.openvino_embedder import OpenVinoTrunk

            return functools.partial(OpenVinoTrunk(self._encoder(), self._work.threads).features, batch_size=size)
        from mrcg.encoder.embedder import trunk_features

        return functools.partial(trunk_features, self._encoder().to(device), batch_size=size, device=device)

    def _encoder(self) -> Encoder:
        # Opened on first use: Ray loses the type of an error that an actor's constructor raises.
        import torch
        from torch import nn

        from mrcg.encoder.trainer import new_encoder

        torch.set_num_threads(self._work.threads)
        weights, config = initial_weights.handed_over(self._store, self._work.attempt), self._work.config
        encoder = new_encoder(config.encoder, self._corpus.classes, config.seed, weights)
        # They take more memory than the trunk.
        encoder.branches = nn.Identity()  # type: ignore[assignment]
        return encoder

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self._store.artefact("corpus", self._work.corpus))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._extract(row["file"])
        except MrcgError as error:
            return to_row(error)

    def _extract(self, images: str) -> dict[str, Any]:
        from mrcg.encoder.embedder import write_features

        name, side = feature_file(images), self._work.config.encoder.input_size
        with self._store.writer(f"{self._work.attempt}/output/{name}") as sink:
            count, width = write_features(sink, self._features_of, side, self._corpus.images_of(images))
        row = {**sink.entry(name).model_dump(), "images": count, "width": width}
        self._store.write_bytes(_done(self._work.attempt, images), json.dumps(row).encode())
        return row


def run(job: Job) -> Outcome:
    """Write the trunk features of the corpus: one Arrow file for each of its pixel files, with rows in the same order.

    Raises:
        WeightsError: the initial weights cannot be loaded or do not fit the architecture.
    """
    from mrcg_jobs.ray_runtime.files import each_file

    job.progress(0, 0, "loading the trunk")
    initial_weights.hand_over(job)

    def work(threads: int) -> _ExtractWork:
        return _ExtractWork(job.store.url, job.step.inputs["corpus"], job.attempt.folder, job.config, threads)

    corpus, attempt = job.inputs["corpus"], job.attempt.folder
    done = {name: _done(attempt, name) for name in corpus.names(IMAGES) if job.store.exists(_done(attempt, name))}
    rows = [job.store.read_json(path) for path in done.values()]
    pending = [name for name in corpus.names(IMAGES) if name not in done]
    total, images = corpus.manifest.counts_as(CorpusCounts).images, sum(row["images"] for row in rows)
    for row in each_file(pending, _ExtractFile, work, job.config.compute) if pending else ():
        rows.append(row)
        images += row["images"]
        job.progress(images, total, "images")
    return Outcome(FeatureCounts(images=images, width=rows[0]["width"]), entries(rows))


def _done(attempt: str, images: str) -> str:
    """Return the name of the file that says that a pixel file is done, and with what: a resumed run skips it."""
    return f"{attempt}/done/{images}.json"
