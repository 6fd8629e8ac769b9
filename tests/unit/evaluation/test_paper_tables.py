import json
from pathlib import Path

import pytest

from mrcg.evaluation.paper_systems import SYSTEMS, Reproduction, Row, Trial, TrialEpoch, TrialFigures
from mrcg.evaluation.paper_tables import paper_datasets, reproduction_markdown

SHARED = Path(__file__).parents[4] / "shared/paper/tables.json"
KAGGLE = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


def figures(value):
    shares = {"precision_at_1": 1.0, "precision_at_5": 0.5, "precision_at_10": 0.25, "same_class": 0.9}
    return {"map": value, "map_full": value / 2, **shares}


def epoch(number, value, classes=()):
    per_class = {label: TrialFigures(**figures(value - 0.1 * place)) for place, label in enumerate(classes)}
    return TrialEpoch(epoch=number, per_class=per_class, **figures(value))


def reproduction(classes=()):
    trial = Trial(protocol="paper", queries=3, gallery=7, epochs=(epoch(0, 0.8, classes), epoch(1, 0.9, classes)))
    rows = tuple(
        Row(
            system=name, margin=10.0 if name == "siamese" else None, encoder_epochs=2, reranker_epochs=None, trial=trial
        )
        for name in ("siamese", "mrcg")
    )
    return reproduction_markdown(Reproduction(recipe="demo", settings=(), rows=rows))


def test_every_system_has_figures_of_the_paper_on_both_sets():
    for dataset in paper_datasets().values():
        assert set(dataset.systems) == set(SYSTEMS)
        assert sum(dataset.images[name] for name in dataset.mrcg_per_class) == dataset.images["total"]


@pytest.mark.skipif(not SHARED.exists(), reason="the paper's tables are not beside the project")
def test_the_figures_are_those_of_the_paper():
    source = json.loads(SHARED.read_text())
    for name, dataset in paper_datasets().items():
        assert {
            system.replace("_", "+"): {figure: tuple(value) for figure, value in row.items()}
            for system, row in source[name]["systems"].items()
        } == dataset.systems
        assert source[name]["mrcg_per_class"] == dataset.mrcg_per_class
        assert source[name]["images"] == dataset.images
        assert source[name]["node_distribution_of_500"] == dataset.nodes_of_500


def test_tables_have_mean_and_deviation_beside_the_papers_on_the_set_with_the_same_classes():
    text = reproduction(KAGGLE)
    # The sample's standard deviation of 0.8 and 0.9 is 0.0707.
    ours = "2 | – | 85.0 ± 7.1 | 42.5 ± 3.5 | 100.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 |"
    assert f"| Siamese CNN | {ours} 78.2 ± 0.6 | 73.3 ± 0.8 | 72.9 ± 0.7 |" in text
    assert f"| MRCG | {ours} 86.6 ± 0.3 | 84.4 ± 0.7 | 83.7 ± 0.7 |" in text
    assert "paper, Kaggle: P@10" in text and "CE-MRI" not in text
    assert "| no_tumor | 65.0 ± 7.1 | 50.0 ± 0.0 | 25.0 ± 0.0 | 450 | 93.7 | 92.9 | 92.0 | 443 |" in text
    assert "Margin of the Siamese network: 10, chosen on the validation part among 2, 10, 50." in text


def test_three_classes_are_those_of_the_other_set():
    text = reproduction(("glioma", "meningioma", "pituitary"))
    assert "| MRCG | 2 | – | 85.0 ± 7.1 | 42.5 ± 3.5 | 100.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 | 88.6 ± 0.6 |" in text
    assert "Kaggle" not in text


@pytest.mark.parametrize("classes", [(), ("stroke", "no stroke"), KAGGLE[:2]])
def test_beside_other_classes_stands_the_papers_map_on_both_sets(classes):
    text = reproduction(classes)
    assert "| 88.6 ± 0.6 | 86.6 ± 0.3 |" in text
    assert ("MRCG by class of the query" in text) == bool(classes)
    for label in classes:
        assert f"\n| {label} | " in text
