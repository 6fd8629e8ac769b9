import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.trainings import move

from mrcg.config.settings import RerankerSettings
from mrcg.errors import TrainingError, WeightsError
from mrcg.metrics.order import BY_SCORE
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.model import MODELS
from mrcg.reranker.scorer import Reranking, Scorer, score_graphs
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
    values = RerankerSettings(**{"hidden": 8, "epochs": 2, "batch_size": 8, **settings})
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float16)
    vectors[:15] += 2
    graphs = TrainingGraphs(table(20, 30, 8, 1), table(6, 30, 8, 2), vectors)
    return RerankerTrainer(new_reranker(values, 5, 1, "ab"), values, 1, graphs)


def ignore(done, total):
    pass


def train(training):
    while not training.finished:
        training.run_epoch(ignore)
    return training


@all_models
def test_resuming_gives_the_same_weights_as_an_uninterrupted_run(name, store):
    settings = {"model": name, "epochs": 3, "features": FEATURES, "scale": True, "weight_decay_first": 0.1}
    straight, again, stopped, resumed = (trainer(**settings) for _ in range(4))
    stopped.run_epoch(ignore)
    move(store, stopped.state, resumed.state)
    states = {safetensors.torch.save(*train(training).state.checkpoint()) for training in (straight, again, resumed)}
    assert len(states) == 1


@all_models
@pytest.mark.parametrize("loss", ["focal", "listwise"])
def test_training_learns_which_cluster_is_relevant(name, loss):
    training = trainer(
        model=name,
        loss=loss,
        features=("difference", "product"),
        scale=True,
        epochs=30,
        learning_rate=0.01,
        dropout=0.0,
    )
    before = training.validate()
    train(training)
    assert max(row["validation_map"] for row in training.state.history) > before
    assert training.state.history[-1]["loss"] < training.state.history[0]["loss"]


@pytest.mark.parametrize("name", ["chebnet", "gcn"])
def test_weight_decay_applies_only_to_the_first_layer(name):
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
def test_which_epoch_is_kept(keep, monkeypatch, store):
    training = trainer(keep=keep, epochs=3)
    maps = iter([0.4, 0.9, 0.1])
    monkeypatch.setattr(training, "validate", lambda: next(maps))
    training.run_epoch(ignore)
    resumed = trainer(keep=keep, epochs=3)
    move(store, training.state, resumed.state)
    monkeypatch.setattr(resumed, "validate", lambda: next(maps))
    train(resumed)
    assert resumed.state.best_epoch == {"best": 1, "last": 2}[keep]
    best = safetensors.torch.load(resumed.state.best_weights())
    last = {k: torch.equal(v, best[k]) for k, v in resumed.reranker.state_dict().items()}
    assert all(last.values()) == (keep == "last")


def test_a_nan_loss_is_reported_with_the_queries():
    training = trainer(batch_size=12)
    training.graphs.vectors_nd[:] = np.nan
    first = ", ".join(str(row) for row in shuffled_batches(20, 12, 1, 0)[0][:8].tolist())
    with pytest.raises(TrainingError) as caught:
        training.run_epoch(ignore)
    assert str(caught.value) == (
        f"the loss is nan in epoch 0, batch 0 (queries: gallery rows {first}, …): lower reranker.learning_rate"
    )


def test_a_small_batch_is_reported_with_all_its_queries():
    training = trainer(batch_size=3)
    training.graphs.vectors_nd[:] = np.nan
    with pytest.raises(TrainingError, match=r"gallery rows \d+, \d+, \d+\)"):
        training.run_epoch(ignore)


def test_the_scale_starts_from_the_training_graphs_and_is_stored():
    training = trainer(scale=True, features=FEATURES)
    assert not torch.allclose(training.reranker.scale.scale_f, torch.ones(8))
    assert {"scale.scale_f", "scale.shift_f"} < set(safetensors.torch.load(training.state.best_weights()))
    assert training.reranker.scale.shift_f[7].item() == pytest.approx(np.mean(1 / np.log2(np.arange(8) + 2)), abs=1e-6)


def test_training_without_graphs_is_rejected():
    settings = RerankerSettings(hidden=4, scale=True)
    graphs = TrainingGraphs(table(20, 30, 8, 1), table(6, 30, 8, 2), np.zeros((30, 5), dtype=np.float16))
    empty = GraphTable(*(getattr(graphs.train, f)[:0] for f in graphs.train.__dataclass_fields__))
    training = RerankerTrainer(
        new_reranker(settings, 5, 1, "ab"), settings, 1, TrainingGraphs(empty, empty, graphs.vectors_nd)
    )
    with pytest.raises(TrainingError, match="there are no training graphs: add more labelled scans"):
        training.run_epoch(ignore)


def test_missing_nodes_come_last_and_ties_keep_the_ann_order():
    scores = np.array([[0.5, 0.9, 0.5, -1.0]], dtype=np.float32)
    distances, copies = np.array([[1.0, 2.0, 3.0, np.inf]]), np.zeros((1, 4), dtype=bool)
    assert BY_SCORE.ranks(scores, distances, copies).tolist() == [[1, 0, 2, 3]]


@all_models
def test_short_lists_have_the_same_scores_in_a_batch_and_on_their_own(name):
    settings = RerankerSettings(model=name, features=FEATURES, hidden=4)
    reranking = Reranking(Scorer(new_reranker(settings, 5, 1, "ab")))
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 5)).astype(np.float32)
    vectors = [rng.normal(size=(n, 5)).astype(np.float16) for n in (4, 9, 1)]
    together = reranking.rerank(queries, vectors)
    for number in range(3):
        separate = reranking.rerank(queries[number : number + 1], [vectors[number]])[0]
        assert separate == pytest.approx(together[number], abs=1e-5)
        assert ((separate >= 0) & (separate <= 1)).all()


def test_pads_of_a_table_have_no_score():
    training = trainer(features=FEATURES, scale=True)
    short = table(2, 30, 8, 3)
    short.neighbours_qn[0, 5:] = -1
    scores = score_graphs(training.reranker, short, training.graphs.vectors_nd, 64, "cpu")
    assert (scores[0, 5:] == -1).all()
    assert (scores[0, :5] >= 0).all()


def stored(training, **changes):
    """Return a stand-in for the stored version that ``Scorer.open`` reads."""
    facts = json.loads(training.reranker.spec.model_dump_json()) | changes
    files = {WEIGHTS: training.state.best_weights(), SPEC: json.dumps(facts).encode()}
    return SimpleNamespace(manifest=SimpleNamespace(version="v1"), read_bytes=files.__getitem__)


@all_models
def test_a_stored_reranker_gives_the_same_scores_as_the_trained_one(name):
    training = train(trainer(model=name, features=FEATURES, scale=True, keep="last"))
    rng = np.random.default_rng(1)
    queries, vectors = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(2, 6, 5)).astype(np.float16)
    mask = np.ones((2, 6), dtype=bool)
    expected = Scorer(training.reranker).score(queries, vectors, mask)
    assert (Scorer.open(stored(training), "cpu", "ab").score(queries, vectors, mask) == expected).all()
    assert (Scorer.open(stored(training)).score(queries, vectors, mask) == expected).all()


def test_a_reranker_of_another_encoder_is_rejected():
    with pytest.raises(WeightsError) as caught:
        Scorer.open(stored(trainer()), encoder_fingerprint="cd")
    assert str(caught.value) == (
        "reranker v1 was trained on encoder ab, not on cd: train the reranker again on this encoder's embeddings"
    )


@pytest.mark.parametrize("key", ["encoder", "hidden"])
def test_a_spec_of_another_version_of_mrcg_is_rejected(key):
    with pytest.raises(
        WeightsError,
        match=f"^reranker v1: {key} in reranker.json is not valid in this version of MRCG: train the reranker again$",
    ):
        read_spec(stored(trainer(), **{key: None}))
