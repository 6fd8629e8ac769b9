import io

import numpy as np
from PIL import Image

from mrcg.evaluation.picture import FRAME, TILE, WRONG, Panel, PanelRow, retrieval_picture
from mrcg.evaluation.report import Report, order_figures, tables_markdown


def report(protocol="paper"):
    rows = np.array([[True, False, True], [False, True, True]])
    ann = order_figures(rows, ["a", "b"], {"a": 5, "b": 5})
    reranked = order_figures(np.sort(rows, axis=1)[:, ::-1], ["a", "b"], {"a": 5, "b": 5})
    return Report(
        protocol=protocol, queries=2, gallery=10, depth=50, ann=ann, reranked=reranked, index_recall_at_50=1.0,
        leaking_queries=1, ood_threshold=3.5, encoder_epochs=3,
    )  # fmt: skip


def test_tables_say_protocol_leakage_and_both_orders():
    text = tables_markdown(report("dedup"))
    assert "Protocol `dedup`: 2 queries, gallery of 10; 1 queries have a near-duplicate" in text
    assert "Without patient ids" in text
    assert "| reranked | 100.0 |" in text
    assert "| a | 1 |" in text


def test_the_report_comes_back_from_its_json():
    made = report()
    assert Report.model_validate_json(made.model_dump_json()) == made


def test_wrong_hits_are_framed_red():
    grey = np.full((60, 80), 128, dtype=np.uint8)
    hits = [Panel(grey, "right", "", True), Panel(grey, "wrong " * 30, "", False), Panel(None, "none")]
    png = retrieval_picture([PanelRow(Panel(grey, "query"), hits)] * 2, "title")
    image = Image.open(io.BytesIO(png)).convert("RGB")
    red = tuple(int(WRONG[i : i + 2], 16) for i in (1, 3, 5))
    count = sum(count for count, colour in image.getcolors(1 << 20) if colour == red)
    side = TILE + 2 * FRAME
    assert count == 2 * (side * side - TILE * TILE)
