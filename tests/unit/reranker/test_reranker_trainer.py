import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from mrcg.config.settings import RerankerSettings
from mrcg.errors import TrainingError, WeightsError
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.model import MODELS
from mrcg.reranker.scorer import Reranking, Scorer, rerank_order, score_graphs
from mrcg.reranker.spec import SPEC, WEIGHTS, read_spec
from mrcg.reranker.trainer import RerankerTrainer, TrainingGraphs, new_reranker
from mrcg.training.batches import shuffled_batches

all_models = pytest.mark.parametrize("name", MODELS)
FEATURES = ("difference", "distance", "rank")


def table(queries, rows, neighbours, seed):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(rows)[:neighbours] for _ in range(queries)])
    return GraphTable(np.arange(queries), lists, lists.astype(np.float32), lists < rows // 2)


def trainer(**settings):
    made = RerankerSettings(**{"hidden": 8, "epochs": 2, "batch_size": 8, **settings})
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float16)
    vectors[:15] += 2
    graphs = TrainingGraphs(table(20, 30, 8, 1), table(6, 30, 8, 2), vectors)
    return RerankerTrainer(new_reranker(made, 5, 1, "ab"), made, 1, graphs)


def nothing(done, total):
    pass


def train(made):
    while not made.finished:
        made.run_epoch(nothing)
    return made


@all_models
def test_resuming_gives_the_weights_of_not_stopping(name):
    settings = {"model": name, "epochs": 3, "features": FEATURES, "scale": True, "weight_decay_first": 0.1}
    straight, again, stopped, resumed = (trainer(**settings) for _ in range(4))
    stopped.run_epoch(nothing)
    resumed.state.restore(stopped.state.to_bytes())
    states = {train(made).state.to_bytes() for made in (straight, again, resumed)}
    assert len(states) == 1


@all_models
@pytest.mark.parametrize("loss", ["focal", "listwise"])
def test_it_learns_which_side_is_relevant(name, loss):
    made = trainer(
        model=name,
        loss=loss,
        features=("difference", "product"),
        scale=True,
        epochs=30,
        learning_rate=0.01,
        dropout=0.0,
    )
    before = made.validate()
    train(made)
    assert max(row["validation_map"] for row in made.state.history) > before
    assert made.state.history[-1]["loss"] < made.state.history[0]["loss"]


@pytest.mark.parametrize("name", ["chebnet", "gcn"])
def test_weight_decay_falls_on_the_first_layer_alone(name):
    """One step of Adam: the first layer's gradient has L2 added, as Adam's own weight decay does it."""
    settings = {"model": name, "epochs": 1, "batch_size": 64, "scale": True, "learning_rate": 1e-3}
    decayed = trainer(**settings, weight_decay_first=10.0)
    start = {key: value.clone() for key, value in decayed.reranker.state_dict().items()}
    train(decayed)
    for key, parameter in decayed.reranker.named_parameters():
        gradient = parameter.grad + (10.0 * start[key] if key.startswith("network.layers.0.") else 0)
        expected = start[key] - 1e-3 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(parameter, expected, atol=1e-6), key


@pytest.mark.parametrize("keep", ["best", "last"])
def test_which_epoch_is_kept(keep, monkeypatch):
    made = trainer(keep=keep, epochs=3)
    maps = iter([0.4, 0.9, 0.1])
    monkeypatch.setattr(made, "validate", lambda: next(maps))
    made.run_epoch(nothing)
    resumed = trainer(keep=keep, epochs=3)
    resumed.state.restore(made.state.to_bytes())
    monkeypatch.setattr(resumed, "validate", lambda: next(maps))
    train(resumed)
    assert resumed.state.best_epoch == {"best": 1, "last": 2}[keep]
    last = {k: torch.equal(v, resumed.state.best[k]) for k, v in resumed.reranker.state_dict().items()}
    assert all(last.values()) == (keep == "last")


def test_a_loss_that_is_no_number_names_the_queries():
    made = trainer(batch_size=12)
    made.graphs.vectors_nd[:] = np.nan
    first = ", ".join(str(row) for row in shuffled_batches(20, 12, 1, 0)[0][:8].tolist())
    with pytest.raises(TrainingError) as caught:
        made.run_epoch(nothing)
    assert str(caught.value) == (
        f"the loss is nan in epoch 0, batch 0 (queries: gallery rows {first}, …): lower reranker.learning_rate"
    )


def test_few_queries_are_all_named():
    made = trainer(batch_size=3)
    made.graphs.vectors_nd[:] = np.nan
    with pytest.raises(TrainingError, match=r"gallery rows \d+, \d+, \d+\)"):
        made.run_epoch(nothing)


def test_the_scale_starts_from_the_training_graphs_and_is_stored():
    made = trainer(scale=True, features=FEATURES)
    assert not torch.allclose(made.reranker.scale.scale_f, torch.ones(8))
    assert {"scale.scale_f", "scale.shift_f"} < set(safetensors.torch.load(made.state.best_weights()))
    assert made.reranker.scale.shift_f[7].item() == pytest.approx(np.mean(1 / np.log2(np.arange(8) + 2)), abs=1e-6)


def test_without_training_graphs_there_is_no_training():
    settings = RerankerSettings(hidden=4, scale=True)
    none = TrainingGraphs(table(20, 30, 8, 1), table(6, 30, 8, 2), np.zeros((30, 5), dtype=np.float16))
    empty = GraphTable(*(getattr(none.train, f)[:0] for f in none.train.__dataclass_fields__))
    made = RerankerTrainer(
        new_reranker(settings, 5, 1, "ab"), settings, 1, TrainingGraphs(empty, empty, none.vectors_nd)
    )
    with pytest.raises(TrainingError, match="no training graphs"):
        made.run_epoch(nothing)


def test_missing_nodes_come_last_and_ties_keep_the_ann_order():
    scores = np.array([[0.5, 0.9, 0.5, -1.0]], dtype=np.float32)
    assert rerank_order(scores).tolist() == [[1, 0, 2, 3]]


@all_models
def test_scores_of_short_lists_in_one_batch_equal_those_alone(name):
    settings = RerankerSettings(model=name, features=FEATURES, hidden=4)
    reranking = Reranking(Scorer(new_reranker(settings, 5, 1, "ab")))
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 5)).astype(np.float32)
    vectors = [rng.normal(size=(n, 5)).astype(np.float16) for n in (4, 9, 1)]
    together = reranking.rerank(queries, vectors)
    for number in range(3):
        alone = reranking.rerank(queries[number : number + 1], [vectors[number]])[0]
        assert alone == pytest.approx(together[number], abs=1e-5)
        assert ((alone >= 0) & (alone <= 1)).all()


def test_pads_of_a_table_have_no_score():
    made = trainer(features=FEATURES, scale=True)
    short = table(2, 30, 8, 3)
    short.neighbours_qn[0, 5:] = -1
    scores = score_graphs(made.reranker, short, made.graphs.vectors_nd, 64, "cpu")
    assert (scores[0, 5:] == -1).all()
    assert (scores[0, :5] >= 0).all()


def stored(made, **changes):
    """What ``Scorer.open`` reads of a version."""
    facts = json.loads(made.reranker.spec.model_dump_json()) | changes
    files = {WEIGHTS: made.state.best_weights(), SPEC: json.dumps(facts).encode()}
    return SimpleNamespace(manifest=SimpleNamespace(version="v1"), read_bytes=files.__getitem__)


@all_models
def test_a_stored_reranker_scores_as_the_trained_one(name):
    made = train(trainer(model=name, features=FEATURES, scale=True, keep="last"))
    rng = np.random.default_rng(1)
    queries, vectors = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(2, 6, 5)).astype(np.float16)
    mask = np.ones((2, 6), dtype=bool)
    expected = Scorer(made.reranker).score(queries, vectors, mask)
    assert (Scorer.open(stored(made), "cpu", "ab").score(queries, vectors, mask) == expected).all()
    assert (Scorer.open(stored(made)).score(queries, vectors, mask) == expected).all()


def test_a_reranker_of_another_encoder_is_refused():
    with pytest.raises(WeightsError) as caught:
        Scorer.open(stored(trainer()), encoder_fingerprint="cd")
    assert str(caught.value) == (
        "reranker v1 was trained on encoder ab, not on cd: train the reranker again on this encoder's embeddings"
    )


@pytest.mark.parametrize("key", ["encoder", "hidden"])
def test_a_spec_of_another_version_of_mrcg_is_one_line(key):
    with pytest.raises(
        WeightsError, match=f"^reranker v1: {key} in reranker.json is not .*: train the reranker again$"
    ):
        read_spec(stored(trainer(), **{key: None}))
