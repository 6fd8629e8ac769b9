"""A reranker that learns grades: the scan itself, then its group, then its class. MAP and known items of each way.

::

    python -m tests.bench.grades --store store --reports VERSION,VERSION --out grades.json

Each way is trained on the stored embeddings of a report, from the seed of its reranker. Beside the training graphs of the
report, some ways learn from changed gallery scans, whose own scan is in the list. Known items are scans of other groups,
changed in other ways.
Gains are over the recipe's own way. The order by score, and s - λ d with the λ of the best validation MAP.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrcg.config.settings import RerankerSettings
from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import facts_in, read_appearance
from mrcg.encoder.embedder import Embedder
from mrcg.evaluation.known_items import forms_of
from mrcg.evaluation.order_choice import GRID, order_of
from mrcg.hashing import draw, seed_of
from mrcg.imaging.slices import resize
from mrcg.index.distances import distances_to, exact_search
from mrcg.metrics.bootstrap import paired
from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder
from mrcg.metrics.ranking import average_precision, precision_at
from mrcg.reranker.graph_table import GraphTable, read_graphs
from mrcg.reranker.model import Reranker
from mrcg.reranker.scorer import gather_batch, score_graphs
from mrcg.reranker.spec import RerankerSpec
from mrcg.reranker.trainer import RerankerTrainer, TrainingGraphs
from mrcg.storage.store import Store
from tests.bench.vector_figures import RESAMPLES

KNOWN, BATCH = 300, 64
#: Places in ``FORMS`` of the changes that rerankers learn from, and of those that known items are searched with.
LEARNED, MEASURED = (1, 2, 3), (4, 5, 6)
#: Grades of a node: its own scan, its group, its class.
OWN, GROUP, CLASS = 3, 2, 1
Grades = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Graded:
    """Neighbour lists and the grade of each node."""

    graphs: GraphTable
    grades_qn: Grades

    def joined(self, other: Graded) -> Graded:
        """Both, one after the other."""
        first, second = self.graphs, other.graphs
        fields = ("queries", "neighbours_qn", "distances_qn", "relevant_qn")
        graphs = GraphTable(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in fields))
        return Graded(graphs, np.concatenate([self.grades_qn, other.grades_qn]))


@dataclass(frozen=True)
class Run:
    """What a report was made from: vectors with those of changed scans after them, and graded lists."""

    settings: RerankerSettings
    seed: int
    encoder: str
    vectors: npt.NDArray[np.float16]
    trained_dim: int
    train: Graded
    changed: Graded
    validation: Graded
    test: Graded
    known: Graded
    known_groups: list[str]
    groups: list[str]

    @classmethod
    def of(cls, store: Store, report: str) -> Run:
        """Open what a report was made from, and embed gallery scans in changed forms."""
        inputs = store.manifest("reports", report).inputs
        kinds = ("corpus", "splits", "embeddings", "graphs")
        opened = {kind: store.artefact(kind, inputs[kind]) for kind in kinds}
        recorded = store.manifest("rerankers", inputs["rerankers"]).settings
        embeddings, corpus, split = opened["embeddings"], Corpus(opened["corpus"]), Split(opened["splits"])
        encoder = store.artefact("encoders", embeddings.manifest.inputs["encoders"])
        embedder = Embedder.open(encoder, appearance=read_appearance(embeddings))
        gallery = np.flatnonzero(split.train)
        ids = corpus.scans["image_id"].to_pylist()
        drawn = np.array(sorted(gallery.tolist(), key=lambda row: draw(0, "bench", ids[row])))
        known, others = drawn[:KNOWN], drawn[KNOWN:]
        groups = np.array(corpus.groups, dtype=object)
        others = others[~split.validation[others] & ~np.isin(groups[others], groups[known])]

        def embedded(
            rows: npt.NDArray[np.int64], places: Sequence[int], each: bool
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
            """Rows and vectors of scans in each of some forms, or in one of them in turn."""
            names, images = list[int](), list[Any]()
            for place, grey in corpus.images(rows.tolist()):
                forms = list(forms_of(grey, seed_of(0, "bench", ids[rows[place]])))
                chosen = [forms[number] for number in (places if each else [places[place % len(places)]])]
                names += [int(rows[place])] * len(chosen)
                images += [resize(form, embedder.input_size) for form in chosen]
            return np.array(names), embedder.embed(np.stack(images), BATCH).astype(np.float16)

        known_rows, known_vectors = embedded(known, MEASURED, each=True)
        other_rows, other_vectors = embedded(others, LEARNED, each=False)
        stored = np.asarray(embeddings_of(embeddings))
        facts = facts_in(embeddings.manifest)
        scans = _Scans(
            np.array(corpus.labels, dtype=object),
            groups,
            np.array(corpus.scans["pixel_hash"].to_pylist(), dtype=object),
        )
        vectors = np.concatenate([stored, known_vectors, other_vectors])
        depth = read_graphs(opened["graphs"], "test").neighbours_qn.shape[1]

        def searched(rows: npt.NDArray[np.int64], first: int) -> Graded:
            queries = vectors[first : first + len(rows)].astype(np.float32)
            among = stored[gallery].astype(np.float32)
            near = exact_search(queries, among, depth)
            hits, distances = gallery[near], distances_to(queries, among, near)
            grades = scans.grades(rows, hits)
            table = GraphTable(np.arange(first, first + len(rows)), hits, distances, grades > 0)
            return Graded(table, grades)

        def of_part(part: str) -> Graded:
            graphs = read_graphs(opened["graphs"], part)
            return Graded(graphs, scans.grades(graphs.queries, graphs.neighbours_qn))

        return cls(
            settings=RerankerSettings.model_validate(recorded["reranker"]),
            seed=recorded["seed"],
            encoder=facts.encoder,
            vectors=vectors,
            trained_dim=facts.trained_dim,
            train=of_part("train"),
            changed=searched(other_rows, len(stored) + len(known_rows)),
            validation=of_part("validation"),
            test=of_part("test"),
            known=searched(known_rows, len(stored)),
            known_groups=groups[known].tolist(),
            groups=corpus.groups,
        )


@dataclass(frozen=True)
class _Scans:
    labels: npt.NDArray[np.object_]
    groups: npt.NDArray[np.object_]
    hashes: npt.NDArray[np.object_]

    def grades(self, rows_q: npt.NDArray[np.int64], hits_qn: npt.NDArray[np.int64]) -> Grades:
        """The grade of each hit of a scan, 0 for pads and other classes."""
        query = rows_q[:, None]
        same = [each[hits_qn] == each[query] for each in (self.labels, self.groups, self.hashes)]
        grades = np.where(same[2], OWN, np.where(same[1], GROUP, np.where(same[0], CLASS, 0)))
        return np.where(hits_qn >= 0, grades, 0)


class GradedTrainer(RerankerTrainer):
    """ListNet's loss with the grades as targets: a node of grade g weighs 2^g - 1."""

    grades: Grades

    def _step(self, indices: npt.NDArray[np.int64], epoch: int, number: int) -> Tensor:
        batch, _ = gather_batch(self.reranker, self.graphs.train, indices, self.graphs.vectors_nd, "cpu")
        generator = torch.Generator().manual_seed(seed_of(self.seed, "drop-edge", epoch, number, 0))
        logits = self.model(batch, generator).masked_fill(~batch.mask_bn, torch.finfo(torch.float32).min)
        targets = (2.0 ** torch.from_numpy(self.grades[indices]) - 1) * batch.mask_bn
        shares = targets / targets.sum(-1, keepdim=True).clamp_min(1)
        loss = -(shares * torch.log_softmax(logits, -1).masked_fill(targets == 0, 0.0)).sum(-1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class Way:
    """A reranker: its title, the trainer, whether it sees whole vectors and changed scans, and settings that differ."""

    title: str
    trainer: type[RerankerTrainer] = RerankerTrainer
    whole: bool = False
    changed: bool = False
    settings: Mapping[str, Any] | None = None


DISTANCE = {"features": ("difference", "distance", "rank")}
LISTWISE = {**DISTANCE, "loss": "listwise"}
SCALED = {"features": ("magnitude", "distance", "rank"), "scale": True}
WAYS: Mapping[str, Way] = {
    "recipe": Way("as in the recipe"),
    "distance": Way("with the distance as an input", settings=DISTANCE),
    "whole": Way("whole vectors, with the distance as an input", whole=True, settings=DISTANCE),
    "listwise": Way("the same, with the listwise loss", whole=True, settings=LISTWISE),
    "changed": Way("changed scans, too, listwise by class", whole=True, changed=True, settings=LISTWISE),
    "graded": Way("changed scans, too, listwise by grade", GradedTrainer, whole=True, changed=True, settings=DISTANCE),
    "scaled": Way("by grade, on scaled magnitudes", GradedTrainer, whole=True, changed=True, settings=SCALED),
}


def measured(run: Run, way: Way, base: dict[str, Any]) -> dict[str, Any]:
    """Train a reranker in a way and return its figures."""
    assert run.settings.graphs == "train", "the graphs of folds or of held-out scans are not read here"
    settings = RerankerSettings.model_validate({**run.settings.model_dump(), **(way.settings or {}), "snapshots": 0})
    dim = run.vectors.shape[1] if way.whole else run.trained_dim
    vectors = run.vectors[:, :dim]
    train = run.train.joined(run.changed) if way.changed else run.train
    torch.manual_seed(seed_of(run.seed, "reranker"))
    reranker = Reranker(RerankerSpec.of(settings, dim, run.encoder))
    graphs = TrainingGraphs(train.graphs, run.validation.graphs, vectors)
    trainer = way.trainer(reranker, settings, run.seed, graphs)
    if isinstance(trainer, GradedTrainer):
        trainer.grades = train.grades_qn
    while not trainer.finished:
        trainer.run_epoch(lambda done, total: None)
    parts = {"validation": run.validation, "test": run.test, "known": run.known}
    scores = {part: score_graphs(reranker, each.graphs, vectors, BATCH, "cpu") for part, each in parts.items()}

    def ranked(part: str, order: HitOrder, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        none = np.zeros(values.shape, dtype=bool)
        return np.take_along_axis(values, order.ranks(scores[part], parts[part].graphs.distances_qn, none), 1)

    def fused_map(order: HitOrder) -> float:
        return float(average_precision(ranked("validation", order, run.validation.graphs.relevant_qn)).mean())

    row: dict[str, Any] = {}
    for name, order in (
        ("distance", BY_DISTANCE),
        ("score", BY_SCORE),
        ("fused", max(map(order_of, GRID), key=fused_map)),
    ):
        for part in ("validation", "test"):
            table = parts[part].graphs
            relevant = ranked(part, order, table.relevant_qn)
            ap, groups = average_precision(relevant), [run.groups[query] for query in table.queries.tolist()]
            gain = paired(base.setdefault(f"{part} {name}", ap), ap, groups, RESAMPLES, seed_of(0, "bootstrap"))
            row |= {f"{part}_{name}_map": float(ap.mean()), f"{part}_{name}_gain": gain.model_dump()}
            row[f"{part}_{name}_precision_at_10"] = float(precision_at(relevant, 10).mean())
        first = (ranked("known", order, run.known.grades_qn)[:, 0] == OWN).reshape(KNOWN, -1).mean(axis=1)
        gain = paired(
            base.setdefault(f"known {name}", first), first, run.known_groups, RESAMPLES, seed_of(0, "bootstrap")
        )
        row |= {f"known_{name}": float(first.mean()), f"known_{name}_gain": gain.model_dump()}
    return row


def main() -> None:
    """Measure all ways on the first report, those of ``--again`` on the others, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--reports", required=True, help="versions; on the first, all ways are tried")
    parser.add_argument("--again", default="", help="ways that are tried on the other reports, too")
    parser.add_argument("--epochs", type=int, help="instead of the epochs of the report's reranker")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = []
    for number, report in enumerate(chosen.reports.split(",")):
        run = Run.of(Store(chosen.store), report)
        if chosen.epochs:
            run = replace(run, settings=run.settings.model_copy(update={"epochs": chosen.epochs}))
        names = list(WAYS) if number == 0 else ["recipe", *filter(None, chosen.again.split(","))]
        base: dict[str, Any] = {}
        for name in names:
            row = {"way": name, "what": WAYS[name].title, "report": report, "seed": run.seed}
            rows.append({**row, **measured(run, WAYS[name], base)})
            chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
            told = {key: round(value, 4) for key, value in rows[-1].items() if isinstance(value, float)}
            print(name, told, flush=True)


if __name__ == "__main__":
    main()
