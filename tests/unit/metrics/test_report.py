import io

import numpy as np
from PIL import Image

from mrcg.evaluation.figures import confusion_figure, curves_figure, distance_figure, nodes_figure, reliability_figure
from mrcg.evaluation.html_report import Drawings, frequent_errors, report_page
from mrcg.evaluation.markdown import tables_markdown
from mrcg.evaluation.projection import project_to_plane
from mrcg.imaging.contact_sheet import FRAME, TILE, WRONG, Panel, PanelRow, retrieval_picture
from mrcg.metrics.calibration import Calibration, fit_platt, reliability
from mrcg.metrics.report import (
    Epoch,
    Leakage,
    OutOfDistribution,
    Queries,
    Report,
    Training,
    confusion,
    gains,
    order_figures,
)

EVIL = "a<script>alert('x')</script>|$x_y$\n腫瘍"
SCORES, RELEVANT = np.array([0.2, 0.9, 0.7]), np.array([False, True, False])


def report(protocol="paper", label="a"):
    rows = np.array([[True, False, True], [False, True, True]])
    queries = Queries([label, "b"], ["g", "h"], np.array([5, 5]))
    better = np.sort(rows, axis=1)[:, ::-1]
    fitted = fit_platt(SCORES, RELEVANT)
    return Report(
        protocol=protocol, queries=2, gallery=10, depth=50, ann=order_figures(rows, queries, 100),
        reranked=order_figures(better, queries, 100), gain=gains(rows, better, queries, 100), bootstrap=100,
        confusion=confusion(queries.labels, [label, label], ["b", None]),
        calibration=Calibration(
            raw=reliability(SCORES, RELEVANT), map=fitted, calibrated=reliability(fitted.apply(SCORES), RELEVANT)
        ),
        out_of_distribution=OutOfDistribution(threshold=3.5, quantile=0.99, flagged=1, median_distance=2.0),
        index_recall_at_50=1.0, leaking_queries=1, masked_hits=0, encoder_epochs=3,
        leakage=Leakage(near_duplicates=1, same_patient=0, patients_known=0),
        encoder_training=Training(best_epoch=0, epochs=(Epoch(epoch=0, loss=1.0, validation_map=0.5),)),
    )  # fmt: skip


def drawings(report):
    near = np.array([1.0, 2.0, 4.0], dtype=np.float32)
    return Drawings(
        confusion=confusion_figure(report.confusion),
        reliability=reliability_figure(report.calibration),
        nodes=nodes_figure({"training": np.array([3, 3]), "test": np.array([2])}, 3),
        distance=distance_figure(near, near, report.out_of_distribution),
        curves=curves_figure({"encoder": report.encoder_training}),
        map=None,
    )


def test_tables_show_protocol_leakage_and_both_orders():
    text = tables_markdown(report("dedup"))
    assert "Protocol `dedup`: 2 queries, gallery of 10; 1 queries have a near-duplicate" in text
    assert "Not every query has a patient id" in text
    assert "| served | 100.0 [100.0, 100.0] |" in text
    assert "| a | 1 |" in text


def test_report_survives_a_json_round_trip():
    result = report()
    assert Report.model_validate_json(result.model_dump_json()) == result


def test_confusion_counts_first_hits_of_both_orders():
    matrix = confusion(["b", "a", "a"], ["a", "a", "c"], ["b", None, "c"])
    assert matrix.classes == ("a", "b")
    assert matrix.found == ("a", "b", "c", None)
    assert matrix.ann == ((1, 0, 1, 0), (1, 0, 0, 0))
    assert matrix.reranked == ((0, 0, 1, 1), (0, 1, 0, 0))
    assert frequent_errors(matrix) == [("a", None, 1, 2), ("a", "c", 1, 2)]


def test_page_is_self_contained_and_escapes_names():
    result = report(protocol="<b>", label=EVIL)
    page = report_page(result, drawings(result), b"png", [("corpus", "0123")]).decode()
    assert "<script" not in page
    assert "a&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "<b>:" not in page
    assert page.count('src="data:') == page.count("<img") == 6
    assert "prefers-color-scheme: dark" in page
    assert "not a medical device" in page


def test_class_name_does_not_break_a_table():
    lines = tables_markdown(report(label=EVIL)).splitlines()
    (row,) = [line for line in lines if "alert" in line]
    assert row.startswith("| a<script>") and row.endswith(" |")


def test_equal_inputs_give_equal_bytes_and_leave_no_matplotlib_settings_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    result = report()
    assert drawings(result) == drawings(result)
    assert dict(matplotlib.rcParams) == before
    svg = drawings(result).confusion.light
    assert b"<dc:date>" not in svg
    assert drawings(result).confusion.dark != svg


def test_empty_parts_and_many_classes_are_drawn():
    empty = np.empty(0, np.int64)
    assert nodes_figure({"training": empty, "test": empty}, 50).light.startswith(b"<?xml")
    far = OutOfDistribution(threshold=None, quantile=0.99, flagged=0, median_distance=None)
    assert distance_figure(empty.astype(np.float32), empty.astype(np.float32), far).light
    empty_calibration = Calibration(raw=reliability(empty, empty > 0), map=None, calibrated=None)
    assert reliability_figure(empty_calibration).light
    many = [f"class {i:03d} with a long name that nobody reads" for i in range(40)]
    assert confusion_figure(confusion(many, many, many)).light


def test_map_is_reproducible_and_accepts_equal_points():
    vectors = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float16)
    assert (project_to_plane(vectors) == project_to_plane(vectors)).all()
    assert project_to_plane(vectors[:7]) is None
    assert np.isfinite(project_to_plane(np.ones((12, 3), dtype=np.float16))).all()
    assert np.isfinite(project_to_plane(np.arange(12, dtype=np.float16)[:, None])).all()


def test_wrong_hits_are_framed_red():
    grey = np.full((60, 80), 128, dtype=np.uint8)
    hits = [Panel(grey, "right", "", True), Panel(grey, "wrong " * 30, "", False), Panel(None, "none")]
    png = retrieval_picture([PanelRow(Panel(grey, "query"), hits)] * 2, "title")
    image = Image.open(io.BytesIO(png)).convert("RGB")
    red = tuple(int(WRONG[i : i + 2], 16) for i in (1, 3, 5))
    count = sum(count for count, colour in image.getcolors(1 << 20) if colour == red)
    side = TILE + 2 * FRAME
    assert count == 2 * (side * side - TILE * TILE)


def test_what_a_picture_says_below_a_hit_is_not_cut():
    def drawn(note):
        grey = np.zeros((8, 8), dtype=np.uint8)
        return retrieval_picture([PanelRow(Panel(grey, "query"), [Panel(grey, "glioma", note)])], "title")

    assert drawn("similarity 0.98, probability 0.97") != drawn("similarity 0.98, probability 0.12")
    # What no two lines hold ends with an ellipsis.
    assert drawn("similarity " * 9 + "a") == drawn("similarity " * 9 + "b")
