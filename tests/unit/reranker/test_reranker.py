import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.making import tiny_config
from torch_geometric.nn import GCNConv

from mrcg.graph.adjacency import GraphBatch, query_graphs
from mrcg.graph.table import GraphTable
from mrcg.reranker.model import Reranker, SkipConvolution, focal_loss
from mrcg.reranker.scorer import Reranking, Scorer
from mrcg.reranker.spec import RerankerSpec
from mrcg.reranker.train import RerankerTrainer, TrainingGraphs, new_reranker, rerank_order, score_graphs

SPEC = RerankerSpec(embedding_dim=5, hidden=4, dropout=0.5, drop_edge=0.5)


def graph(count=2, nodes=7, dim=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, nodes, dtype=torch.bool)
    return query_graphs(torch.randn(count, dim, generator=rng), torch.randn(count, nodes, dim, generator=rng), mask)


@given(st.integers(0, 20), st.integers(2, 9), st.floats(0, 1))
def test_the_dense_convolution_equals_pygs_sparse_one(seed, nodes, density):
    """D̂^-1/2 (A+I) D̂^-1/2 X W + F(X), with nodes that have no edge among them."""
    torch.manual_seed(seed)
    made = graph(1, nodes, seed=seed)
    keep = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < density
    adjacency = made.adjacency_bnn * (torch.triu(keep, 1) | torch.triu(keep, 1).T)
    layer, sparse = SkipConvolution(5, 4), GCNConv(5, 4)
    with torch.no_grad():
        sparse.lin.weight.copy_(layer.convolution.lin.weight)
        sparse.bias.copy_(layer.convolution.bias.normal_())
        sparse.bias.copy_(layer.convolution.bias)
        edges = adjacency[0].nonzero().T
        expected = sparse(made.x_bnd[0], edges, adjacency[0][edges[0], edges[1]]) + layer.skip(made.x_bnd[0])
        dense = layer(made.x_bnd, adjacency, made.mask_bn)[0]
    assert torch.allclose(dense, expected.relu(), atol=1e-5)


def test_pads_change_nothing():
    model = Reranker(SPEC).eval()
    made = graph(1, 4)
    padded = GraphBatch(
        torch.nn.functional.pad(made.x_bnd, (0, 0, 0, 3)),
        torch.nn.functional.pad(made.adjacency_bnn, (0, 3, 0, 3)),
        torch.nn.functional.pad(made.mask_bn, (0, 3)),
    )
    assert torch.allclose(model(made)[0], model(padded)[0, :4], atol=1e-6)


def test_the_order_of_the_neighbours_does_not_matter():
    model, made = Reranker(SPEC).eval(), graph(1, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = GraphBatch(made.x_bnd[:, order], made.adjacency_bnn[:, order][:, :, order], made.mask_bn[:, order])
    assert torch.allclose(model(made)[0, order], model(turned)[0], atol=1e-6)


@given(st.floats(0, 1), st.floats(0, 4), st.integers(0, 30))
def test_focal_loss_equals_the_naive_one(alpha, gamma, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    targets, mask = torch.rand(2, 5, generator=rng) < 0.5, torch.rand(2, 5, generator=rng) < 0.8
    losses = []
    for logit, target, there in zip(logits.ravel(), targets.ravel(), mask.ravel(), strict=True):
        p = torch.sigmoid(logit)
        p_t, alpha_t = (p, alpha) if target else (1 - p, 1 - alpha)
        if there:
            losses.append(float(-alpha_t * (1 - p_t) ** gamma * torch.log(p_t)))
    expected = sum(losses) / len(losses) if losses else 0.0
    assert focal_loss(logits, targets, mask, alpha, gamma).item() == pytest.approx(expected, abs=1e-9)


def test_gradient_of_the_focal_loss():
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets, mask = torch.tensor([[True, False, True]] * 2), torch.ones(2, 3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets, mask, 0.25, 2.0), (logits,))


def table(queries, rows, neighbours, seed):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(rows)[:neighbours] for _ in range(queries)])
    return GraphTable(np.arange(queries), lists, lists.astype(np.float32), lists < rows // 2)


def trainer(*overrides):
    settings = tiny_config(*overrides).reranker
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float16)
    vectors[:15] += 2
    graphs = TrainingGraphs(table(20, 30, 8, 1), table(6, 30, 8, 2), vectors)
    return RerankerTrainer(new_reranker(settings, 5, 1), settings, 1, graphs)


def nothing(done, total):
    pass


def test_resuming_gives_the_weights_of_not_stopping():
    straight, stopped, resumed = (trainer("reranker.epochs=3") for _ in range(3))
    while not straight.finished:
        straight.run_epoch(nothing)
    stopped.run_epoch(nothing)
    resumed.state.restore(stopped.state.to_bytes())
    while not resumed.finished:
        resumed.run_epoch(nothing)
    assert straight.state.to_bytes() == resumed.state.to_bytes()


def test_it_learns_which_side_is_relevant():
    made = trainer("reranker.epochs=60", "reranker.learning_rate=0.01", "reranker.dropout=0.0")
    before = made.validate()
    while not made.finished:
        made.run_epoch(nothing)
    assert max(row["validation_map"] for row in made.state.history) > before
    assert made.state.history[-1]["loss"] < made.state.history[0]["loss"]


def test_missing_nodes_come_last_and_ties_keep_the_ann_order():
    scores = np.array([[0.5, 0.9, 0.5, -1.0]], dtype=np.float32)
    assert rerank_order(scores).tolist() == [[1, 0, 2, 3]]


def test_scores_of_short_lists_in_one_batch_equal_those_alone():
    reranking = Reranking(Scorer(Reranker(SPEC)))
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 5)).astype(np.float32)
    vectors = [rng.normal(size=(n, 5)).astype(np.float16) for n in (4, 9, 1)]
    together = reranking.rerank(queries, vectors)
    for number in range(3):
        alone = reranking.rerank(queries[number : number + 1], [vectors[number]])[0]
        assert alone == pytest.approx(together[number], abs=1e-5)
        assert ((alone >= 0) & (alone <= 1)).all()


def test_pads_of_a_table_have_no_score():
    made = trainer()
    short = table(2, 30, 8, 3)
    short.neighbours_qn[0, 5:] = -1
    scores = score_graphs(made.reranker, short, made.graphs.vectors_nd, 64, "cpu")
    assert (scores[0, 5:] == -1).all()
    assert (scores[0, :5] >= 0).all()
