"""The pure parts of the label audit, against naive routines; embeddings are noise around a centre of each class."""

import base64
import io
import itertools
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrcg.corpus.splits import Fold, Split
from mrcg.errors import SourceError
from mrcg.evaluation.label_audit import (
    MIN_CLASS,
    NAMED,
    AuditedScan,
    NamedNeighbour,
    audit_labels,
    class_probabilities,
    flagged_figures,
    frequent_classes,
    matched,
    nearest_labelled,
    score_labels,
    scoring_parts,
)
from mrcg.evaluation.label_page import UPPER_BOUND, audit_page
from mrcg.storage import schemas

SEED = 1


def split_of(parts):
    """A split with these parts: train, validation, held_out, test or none."""
    table = pa.table(
        {
            "image_id": [str(row) for row in range(len(parts))],
            "split": ["train" if part in ("validation", "held_out") else part for part in parts],
            "validation": [part == "validation" for part in parts],
            "held_out": [part == "held_out" for part in parts],
        },
        schema=schemas.SPLITS,
    )
    return Split(SimpleNamespace(read_bytes=lambda name: schemas.to_parquet(table)))


SCANS = st.lists(
    st.tuples(
        st.sampled_from(["train", "train", "train", "test", "validation", "held_out", "none"]),
        st.integers(0, 8).map("group {}".format),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(SCANS, st.integers(2, 4))
def test_every_labelled_scan_is_scored_once_by_an_encoder_that_did_not_see_its_group(scans, folds):
    parts, groups, labelled = zip(*scans, strict=True)
    labelled, split = np.array(labelled), split_of(parts)
    made = scoring_parts(split, groups, labelled, folds, SEED)
    assert [part.fold for part in made] == [None, *(Fold(number, folds) for number in range(folds))]
    assert (np.sum([part.scored for part in made], axis=0) == labelled).all()
    for part in made:
        seen = split.seen(groups, part.fold, SEED)
        seen_groups = {groups[row] for row in np.flatnonzero(seen)}
        assert not seen_groups & {groups[row] for row in np.flatnonzero(part.scored)}
    used_by_released = made[0].scored
    assert (used_by_released <= ~split.fit).all(), "the released encoder was trained on them"


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 25))
def test_neighbours_are_the_nearest_labelled_scans_of_other_groups(seed, k, count):
    draws = np.random.default_rng(seed)
    vectors = draws.integers(0, 4, (count, 3)).astype(np.float16)  # many ties
    groups = draws.integers(0, 5, count)
    scored, labelled = draws.random(count) < 0.6, draws.random(count) < 0.6
    near = nearest_labelled(vectors, scored, labelled, groups, k)
    wide = vectors.astype(np.float64)
    for place, row in enumerate(np.flatnonzero(scored)):
        others = [other for other in np.flatnonzero(labelled) if groups[other] != groups[row]]
        others.sort(key=lambda other: (((wide[other] - wide[row]) ** 2).sum(), other))
        wanted = [*others[:k], *([-1] * (k - len(others[:k])))]
        assert near.rows_qk[place].tolist() == wanted
        assert (np.isinf(near.distances_qk[place]) == (near.rows_qk[place] < 0)).all()


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 7))
def test_probabilities_are_smoothed_shares(seed, classes, k):
    draws = np.random.default_rng(seed)
    labels, rows = draws.integers(0, classes, 30), draws.integers(-1, 30, (8, k))
    probabilities = class_probabilities(rows, labels, classes)
    assert (probabilities > 0).all()
    assert np.allclose(probabilities.sum(axis=1), 1)
    for row, shares in zip(rows.tolist(), probabilities, strict=True):
        found = [labels[one] for one in row if one >= 0]
        for number in range(classes):
            assert shares[number] == pytest.approx((found.count(number) + 1 / classes) / (len(found) + 1))


def confident(probabilities, labels):
    """Confident learning as its paper defines it, row by row."""
    classes = range(probabilities.shape[1])
    thresholds = [probabilities[labels == c, c].mean() if (labels == c).any() else np.inf for c in classes]
    flagged = []
    for shares, label in zip(probabilities, labels, strict=True):
        sure = [c for c in classes if shares[c] >= thresholds[c] - 1e-6]
        best = max(sure, key=lambda c: shares[c], default=label)
        flagged.append(best != label and shares[best] > shares[label] + 1e-6 and shares[label] < shares.max() - 1e-6)
    return np.array(flagged)


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(10, 60))
def test_labels_are_scored_by_confident_learning(seed, classes, count):
    draws = np.random.default_rng(seed)
    probabilities = draws.dirichlet(np.full(classes, 0.4), count)
    labels = np.where(draws.random(count) < 0.7, probabilities.argmax(axis=1), draws.integers(0, classes, count))
    labels[:classes] = range(classes)
    scores = score_labels(probabilities, labels)
    assert np.allclose(scores.own, probabilities[np.arange(count), labels])
    others = np.array([max(np.delete(shares, own)) for shares, own in zip(probabilities, labels, strict=True)])
    assert np.allclose(scores.margin, scores.own - others)
    assert (np.where(scores.margin < 0, probabilities.argmax(axis=1), labels) == scores.suggested).all()
    assert sorted(scores.order.tolist()) == list(range(count))
    assert all(a <= b for a, b in itertools.pairwise(scores.own[scores.order]))
    assert (scores.margin[scores.flagged] < 0).all()
    wanted = np.zeros(count, dtype=bool)
    wanted[scores.order[: confident(probabilities, labels).sum()]] = True
    assert (scores.flagged == (wanted & (scores.margin < 0))).all()


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_matched_queries_have_the_class_and_the_nearest_margin(seed, count):
    draws = np.random.default_rng(seed)
    labels, flagged = draws.integers(0, 3, count), draws.random(count) < 0.3
    margins = draws.integers(-5, 6, count) / 5
    margins[~flagged & (draws.random(count) < 0.2)] = np.nan
    chosen = matched(flagged, labels, margins)
    assert not (chosen & flagged).any()
    assert np.isfinite(margins[chosen]).all()
    free = [row for row in range(count) if not flagged[row] and np.isfinite(margins[row])]
    for own in range(3):
        available = sum(labels[row] == own for row in free)
        assert chosen[labels == own].sum() == min(flagged[labels == own].sum(), available)
    naive = []
    for row in sorted(np.flatnonzero(flagged), key=lambda row: (margins[row], row)):
        same = [other for other in free if labels[other] == labels[row]]
        if same:
            naive.append(min(same, key=lambda other: (abs(margins[other] - margins[row]), other)))
            free.remove(naive[-1])
    assert sorted(naive) == np.flatnonzero(chosen).tolist()


def test_figures_without_flagged_queries_and_without_as_many_matched():
    def scan(ident, margin, flagged):
        return AuditedScan(
            image_id=ident, source_key=ident, label="a", suggested="b", probability=0.5, margin=margin, group_id=ident,
            part="test", flagged=flagged, neighbours=(),
        )  # fmt: skip

    names = ["wrong", "hard", "easy", "not audited"]
    scans = [scan("wrong", -0.9, True), scan("hard", -0.1, False), scan("easy", 0.9, False), scan("train", -1, True)]
    columns = {"image_id": names, "group_id": names, "label": ["a"] * 4, "served_map": [0.0, 0.5, 1.0, 0.9]}
    figures = flagged_figures("r", pa.table(columns), scans, 200)
    assert (figures.all_queries.queries, figures.all_queries.map) == (4, pytest.approx(0.6))
    assert (figures.without_flagged.queries, figures.without_flagged.map) == (3, pytest.approx(0.8))
    assert (figures.without_matched.queries, figures.without_matched.map) == (3, pytest.approx(1.9 / 3))
    assert figures.without_flagged.interval.low <= 0.8 <= figures.without_flagged.interval.high
    earlier = pa.table({name: values for name, values in columns.items() if name != "served_map"})
    earlier = earlier.append_column("reranked_map", pa.array([1.0] * 4))
    assert flagged_figures("r", earlier, scans, 200).all_queries.map == 1.0


# The audit as a whole -----------------------------------------------------------------------------------------------

CLASSES = ("glioma", "meningioma", "none")


def corpus_of(labels, groups):
    ids = [f"{row:04x}" for row in range(len(labels))]
    return SimpleNamespace(
        labels=labels,
        groups=groups,
        classes=tuple(sorted({label for label in labels if label is not None})),
        scans=pa.table({"image_id": ids, "source_key": [f"<b>&{ident}.png" for ident in ids]}),
        artefact=SimpleNamespace(manifest=SimpleNamespace(version="c0ffee")),
    )


@pytest.fixture(scope="module")
def audited():
    """300 scans of three classes, 12 of them with another's label, 3 of a rare class and 4 without a label."""
    draws = np.random.default_rng(3)
    count, folds = 307, 2
    true = [*(CLASSES[row % 3] for row in range(300)), *["rare"] * 3, *[None] * 4]
    labels = list(true)
    flips = sorted(draws.choice(300, 12, replace=False).tolist())
    for row in flips:
        labels[row] = CLASSES[(CLASSES.index(true[row]) + 1 + int(draws.integers(2))) % 3]
    groups = [f"g{row // 6}" for row in range(count)]
    parts = ["train" if draws.random() < 0.7 else "test" for _ in range(count)]
    parts[:12] = ["validation"] * 12
    split, corpus = split_of(parts), corpus_of(labels, groups)
    labelled = np.array([label is not None for label in labels])
    scored = scoring_parts(split, groups, labelled, folds, SEED)
    centres = {name: draws.normal(size=8) * 4 for name in (*CLASSES, "rare", None)}

    def vectors():
        for _ in scored:  # the space of each encoder has its own axes
            turn = np.linalg.qr(draws.normal(size=(8, 8)))[0]
            yield (np.array([centres[name] + draws.normal(size=8) for name in true]) @ turn).astype(np.float16)

    return SimpleNamespace(
        flips=flips, true=true, split=split, corpus=corpus, result=audit_labels(corpus, split, scored, vectors(), folds)
    )


def test_flipped_labels_come_first_and_are_flagged_with_their_true_class(audited):
    result = audited.result
    assert (result.corpus, result.scans, result.unlabelled, dict(result.rare)) == ("c0ffee", 300, 4, {"rare": 3})
    first = result.rows[: len(audited.flips)]
    assert sorted(int(scan.image_id, 16) for scan in first) == audited.flips
    flagged = [int(scan.image_id, 16) for scan in result.rows if scan.flagged]
    assert set(flagged) <= set(audited.flips)
    assert result.flagged == len(flagged) > 0.8 * len(audited.flips)
    assert all(scan.suggested == audited.true[int(scan.image_id, 16)] for scan in result.rows)
    assert len({scan.image_id for scan in result.rows}) == 300


def test_rows_say_where_a_scan_is_and_name_its_neighbours(audited):
    corpus, split = audited.corpus, audited.split
    for scan in audited.result.rows:
        row = int(scan.image_id, 16)
        assert scan.label == corpus.labels[row]
        assert scan.group_id == corpus.groups[row]
        assert {"test": split.test, "validation": split.validation, "train": split.fit}[scan.part][row]
        assert len(scan.neighbours) == NAMED
        for near in scan.neighbours:
            other = int(near.image_id, 16)
            assert corpus.groups[other] != scan.group_id
            assert near.label == corpus.labels[other]


def test_two_frequent_classes_are_needed():
    labels = np.array([0] * 30 + [1] * (MIN_CLASS + 1))
    groups = np.append(np.arange(len(labels) - 1), len(labels) - 2)  # the last two scans are of one group
    with pytest.raises(SourceError, match="the label audit needs two classes of which every scan has 5 scans"):
        frequent_classes(labels, groups, 2)
    labels, groups = np.append(labels, 1), np.append(groups, len(groups))
    assert frequent_classes(labels, groups, 3).tolist() == [True, True, False]


def test_the_page_shows_the_scans_and_nothing_from_elsewhere(audited):
    shown = audited.result.model_copy(update={"rows": audited.result.rows[:3]})
    neighbour = NamedNeighbour(image_id="x", label="<script>")
    scan = shown.rows[0].model_copy(update={"neighbours": (neighbour,)})
    shown = shown.model_copy(update={"rows": (scan, *shown.rows[1:])})
    grey = np.full((300, 200), 7, dtype=np.uint8)
    ids = [scan.image_id for scan in shown.rows] + [n.image_id for scan in shown.rows for n in scan.neighbours]
    page = audit_page(shown, dict.fromkeys(ids, grey)).decode()
    assert page.count("<img") == 1 + 1 + 2 * (1 + NAMED)
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;&amp;" in page
    assert "<script" not in page
    assert "//" not in page.replace("data:image/png;base64,", "").split("<body>")[0]
    assert "http" not in page
    assert "rare (3)" in page
    assert UPPER_BOUND not in page, "there is no report"
    picture = page.split("data:image/png;base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (96, 144)
