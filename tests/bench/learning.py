"""What learning costs beside what it could cost: a plain loop, a bound, the sparse form.

    python -m tests.bench.learning [--out FILE]

- One Ray Train worker against a plain PyTorch loop over the same model, images and loss, in images per second. Ours has
  the checkpoint and the report of each epoch in it. The loop runs before and after, and the mean of both counts.
- Epochs of the paper's recipe (VGG16, 224 pixels, explicit triplets) with its frozen trunk cached and not, against the
  bound (trunk + head) / head. One view of each image is cached: with augmentation, ``encoder.cached_views`` of them.
- The reranker's two dense graph convolutions against PyTorch Geometric's sparse ones, forward and backward, N = 50, batch
  64. Both do the same products with the weights, which is most of the work where features are 1000 wide.

Everything is measured in one run, and only ratios are compared. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.encoder.embedder import trunk_features
from mrcg.encoder.losses import classification_loss, mined_triplet_loss, triplet_loss
from mrcg.encoder.model import Encoder, to_input
from mrcg.encoder.samplers import triplet_batches
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, new_encoder
from mrcg.execution import ray_environment
from mrcg.execution.executor import LocalExecutor
from mrcg.pipeline.plan import plan
from mrcg.reranker.graph_features import query_graphs
from mrcg.reranker.layers import SkipConvolution
from mrcg.storage.attempts import begin
from mrcg.storage.store import Store
from mrcg.training.batches import shuffled_batches
from mrcg.training.state import Worker
from mrcg_jobs.job import Job

if TYPE_CHECKING:
    from mrcg_jobs.ray_runtime.trainer import TrainTask, Wrap

CLASSES = ("a", "b", "c", "d")
TIMES = "times.json"


def images(count: int, side: int) -> LabelledImages:
    """Noise with labels: what is in an image does not change what it costs."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    names = [str(n) for n in range(count)]
    return LabelledImages(names, rng.integers(0, len(CLASSES), count), names, pixels)


def recipe_mobilenet() -> Config:
    return load_config("mobilenet", ["encoder.weights=none", "encoder.augment=false", "encoder.epochs=4"])


class Timed:
    """A trainer that notes when each epoch begins: what lies between has checkpoint and report in it."""

    def __init__(self, trainer: EncoderTrainer) -> None:
        self.trainer = trainer
        self.state = trainer.state
        self.begins: list[float] = []

    @property
    def finished(self) -> bool:
        return self.trainer.finished

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        self.begins.append(time.perf_counter())
        return self.trainer.run_epoch(on_batch)


def build(task: TrainTask, worker: Worker, wrap: Wrap) -> Timed:
    """The trainer on Ray's worker."""
    config, count = task.config
    encoder = new_encoder(config.encoder, CLASSES, config.seed, None).to(worker.device)
    empty = images(0, config.encoder.input_size)
    fit = images(count, config.encoder.input_size)
    return Timed(EncoderTrainer(encoder, config.encoder, config.seed, fit, empty, worker, wrap))


def save(trainer: Any) -> dict[str, bytes]:
    return {TIMES: json.dumps(trainer.begins).encode()}


def ray_rate(count: int) -> float:
    """Images per second of one Ray Train worker."""
    ray_environment.prepare()  # before anything imports Ray
    from mrcg_jobs.ray_runtime import cluster
    from mrcg_jobs.ray_runtime.trainer import TrainTask, train

    config = recipe_mobilenet()
    step = plan(config, Source("bench", "bench", count, 1, False), "none")[2]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        cluster.start(None)
        try:
            with begin(store, step.stage.kind, step.version) as attempt:
                job = Job(
                    store, config, Source("", "", 0, 0, False), step, {}, attempt, LocalExecutor(), lambda *_: None
                )
                task = TrainTask(
                    store.url, attempt.folder, {}, (config, count), config.encoder.epochs, 0, build=build, save=save
                )
                train(job, task, 1)
                begins = json.loads(store.read_bytes(f"{attempt.output}/{TIMES}"))
        finally:
            cluster.stop()
    # The first epoch warms up.
    return count * (len(begins) - 2) / (begins[-1] - begins[1])


def plain_rate(count: int) -> float:
    """Images per second of a loop without anything around it."""
    config = recipe_mobilenet()
    settings = config.encoder
    encoder = new_encoder(settings, CLASSES, config.seed, None)
    fit = images(count, settings.input_size)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    encoder.train()
    begins = []
    for epoch in range(settings.epochs):
        begins.append(time.perf_counter())
        for batch in shuffled_batches(count, settings.batch_size, config.seed, epoch):
            labels = torch.from_numpy(fit.labels[batch])
            embeddings, logits = encoder(to_input(torch.from_numpy(fit.pixels[batch])))
            triplet = mined_triplet_loss(embeddings, labels, settings.margin, "batch_all")
            entropy = classification_loss(logits, labels)
            loss = triplet.total / triplet.count.clamp_min(1) / settings.margin + entropy.total / entropy.count
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return count * (len(begins) - 2) / (begins[-1] - begins[1])


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Median seconds of a call, after one that warms up."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def plain_head(encoder: Encoder, config: Config, labels: Any, features: Any) -> None:
    """An epoch of the head alone: batches of triplets of features, loss, step."""
    settings = config.encoder
    optimizer = torch.optim.AdamW(encoder.branches.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    encoder.train()
    for batch in triplet_batches(labels, settings.batch_size, config.seed, 0):
        flat = batch.T.reshape(-1)
        embeddings, logits = encoder.branches(torch.from_numpy(features[flat]))
        triplet = triplet_loss(*embeddings.chunk(3), settings.margin)
        entropy = classification_loss(logits, torch.from_numpy(labels[flat]))
        loss = triplet.total / triplet.count.clamp_min(1) / settings.margin + entropy.total / entropy.count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def cached_trunk(count: int) -> dict[str, float]:
    """Epochs of the paper's recipe with and without the cache, and the two parts that the bound is made of."""
    config = load_config("paper", ["encoder.weights=none", "encoder.epochs=9"])
    settings = config.encoder
    encoder = new_encoder(settings, CLASSES, config.seed, None)
    fit, empty = images(count, settings.input_size), images(0, settings.input_size)
    features = trunk_features(encoder, fit.pixels, settings.batch_size, "cpu")
    cached = LabelledImages(fit.ids, fit.labels, fit.groups, fit.pixels, (features,))

    def epoch_of(what: LabelledImages) -> Callable[[], object]:
        trainer = EncoderTrainer(encoder, settings, config.seed, what, empty)
        return lambda: trainer.run_epoch(lambda done, total: None)

    # An epoch's triplets are three images each: the trunk's share is measured on as many.
    rows = np.tile(np.arange(count), 3)
    with torch.inference_mode():
        encoder.eval()
        trunk = seconds_of(lambda: [encoder.features(to_input(torch.from_numpy(fit.pixels[some]))) for some in
                                    np.array_split(rows, max(1, count // settings.batch_size))], 2)  # fmt: skip
    head = seconds_of(lambda: plain_head(encoder, config, fit.labels, features), 3)
    uncached = seconds_of(epoch_of(fit), 2)
    return {"trunk": trunk, "head": head, "uncached": uncached, "cached": seconds_of(epoch_of(cached), 3)}


def graph_convolution(width: int) -> dict[str, float]:
    """Seconds of a dense and a sparse convolution with its skip, forward and backward, 64 complete graphs of 50 nodes.

    Args:
        width: of a node's features; the result is 256 wide.
    """
    from torch_geometric.nn import GCNConv
    from torch_geometric.utils import dense_to_sparse

    torch.manual_seed(1)
    graph = query_graphs(torch.randn(64, width), torch.randn(64, 50, width), torch.ones(64, 50, dtype=torch.bool))
    dense = SkipConvolution(width, 256)
    convolution, skip = GCNConv(width, 256), torch.nn.Linear(width, 256)
    edges, weights = dense_to_sparse(graph.adjacency_bnn)
    nodes = graph.x_bnf.reshape(-1, width)
    with torch.no_grad():
        convolution.lin.weight.copy_(dense.convolution.lin.weight)
        convolution.bias.copy_(dense.convolution.bias)
        skip.load_state_dict(dense.skip.state_dict())

    def run_dense() -> torch.Tensor:
        out = dense(graph.x_bnf, graph.adjacency_bnn, graph.mask_bn)
        out.sum().backward()
        return out.reshape(-1, 256)

    def run_sparse() -> torch.Tensor:
        out = torch.relu(convolution(nodes, edges, weights) + skip(nodes))
        out.sum().backward()
        return out

    assert torch.allclose(run_dense(), run_sparse(), atol=1e-3), "they do not compute the same"
    return {"dense": seconds_of(run_dense, 15), "sparse": seconds_of(run_sparse, 15)}


def main() -> None:
    """Measure and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="of the training loop")
    parser.add_argument("--paper-images", type=int, default=32, help="of the paper's recipe")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    before = plain_rate(chosen.images)
    ray = ray_rate(chosen.images)
    plain = (before + plain_rate(chosen.images)) / 2
    trunk = cached_trunk(chosen.paper_images)
    # In a process of its own: after other work glibc keeps what is freed, and the sparse form's large messages are cheap.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        second, first = fresh.map(graph_convolution, (256, 1000))
    bound = (trunk["trunk"] + trunk["head"]) / trunk["head"]
    speedup = trunk["uncached"] / trunk["cached"]
    rows = [
        {"what": "Ray Train worker / plain loop", "measured": ray, "against": plain, "unit": "images/s",
         "ratio": ray / plain, "bar": 0.9},
        {"what": "cached trunk / its bound", "measured": speedup, "against": bound, "unit": "times faster",
         "ratio": speedup / bound, "bar": 0.8},
        *({"what": f"dense / sparse convolution, {width} to 256 wide", "measured": 64 / graphs["dense"],
           "against": 64 / graphs["sparse"], "unit": "graphs/s", "ratio": graphs["sparse"] / graphs["dense"],
           "bar": 5.0} for width, graphs in ((256, second), (1000, first))),
    ]  # fmt: skip
    for row in rows:
        print(f"{row['what']}: {row['measured']:.1f} against {row['against']:.1f} {row['unit']}, ratio "
              f"{row['ratio']:.2f}, at least {row['bar']}")  # fmt: skip
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
