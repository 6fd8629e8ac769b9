"""Manifests as people and programs write them."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrcg.corpus.sources import open_source
from mrcg.errors import SourceError

TEXT = "path,label,patient,acquired\n1.png,m\u00e9ningiome,0815,2020-02-29\n2.png,gliome,,\n"
FACTS = [("1.png", "m\u00e9ningiome", "0815", "2020-02-29"), ("2.png", "gliome", None, None)]


def facts(tmp_path, data, name="scans.csv"):
    (tmp_path / name).write_bytes(data)
    return [(file.key, file.label, file.patient, file.acquired) for file in open_source(str(tmp_path / name)).walk()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_delimiters_are_recognised(tmp_path, encoding, delimiter, end):
    assert facts(tmp_path, TEXT.replace(",", delimiter).replace("\n", end).encode(encoding)) == FACTS


@pytest.mark.parametrize("rows", [0, 100_000])
def test_a_code_page_is_refused_with_the_line(tmp_path, rows):
    data = (
        TEXT.splitlines()[0].encode()
        + b"\n"
        + b"1.png,plain,1,2020-01-01\n" * rows
        + TEXT.splitlines()[1].encode("cp1252")
    )
    with pytest.raises(SourceError, match=f"line {rows + 2} is neither UTF-8 nor UTF-16; save the table again"):
        facts(tmp_path, data)


def test_names_of_columns_compare_without_case_and_white_space(tmp_path):
    text = TEXT.replace("path,label,patient", " Path , LABEL,Patient ")
    assert facts(tmp_path, text.encode()) == FACTS


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(SourceError, match="has 2 columns named patient: remove all but one"):
        facts(tmp_path, b"path,patient,label,Patient\n1.png,1,a,2\n")


def test_other_columns_may_repeat(tmp_path):
    assert facts(tmp_path, b"path,note,note\n1.png,a,b\n") == [("1.png", None, None, None)]


@pytest.mark.parametrize("day", ["2020-02-30", "2019-02-29", "29.02.2020", "2020-2-9", "20200229", "2020-13-01"])
def test_a_day_that_no_calendar_has_is_refused_with_its_row(tmp_path, day):
    with pytest.raises(SourceError, match="row 2: acquired is not a day like 2026-01-31"):
        facts(tmp_path, f"path,acquired\n1.png,2020-02-29\n2.png,{day}\n".encode())


@pytest.mark.parametrize("fold", ["1,000", "1.5", "-1", "one"])
def test_a_fold_that_is_no_whole_number_is_refused(tmp_path, fold):
    with pytest.raises(SourceError, match="row 1: fold is not a whole number"):
        facts(tmp_path, f'path,fold\n1.png,"{fold}"\n'.encode())


def test_numbers_and_days_of_a_parquet_table_are_what_they_were(tmp_path):
    table = pa.table(
        {
            "path": ["1.png", "2.png", "3.png"],
            "patient": pa.array([123.0, None, float("nan")]),
            "fold": pa.array([1.0, None, 2.0]),
            "acquired": [datetime.date(2020, 2, 29), None, None],
            "label": ["a", "", " "],
        }
    )
    pq.write_table(table, tmp_path / "scans.parquet")
    files = list(open_source(str(tmp_path / "scans.parquet")).walk())
    assert [file.patient for file in files] == ["123", None, None]
    assert [file.fold for file in files] == [1, None, 2]
    assert [file.acquired for file in files] == ["2020-02-29", None, None]
    assert [file.label for file in files] == ["a", None, None]
    pq.write_table(
        table.set_column(3, "acquired", [pa.array([datetime.datetime(2020, 2, 29)] * 3)]), tmp_path / "t.parquet"
    )
    assert {file.acquired for file in open_source(str(tmp_path / "t.parquet")).walk()} == {"2020-02-29"}


@pytest.mark.parametrize("data", [b"PAR1 and no table", b""])
def test_what_is_no_parquet_table_is_refused(tmp_path, data):
    with pytest.raises(SourceError, match="is not a readable table"):
        facts(tmp_path, data, "scans.parquet")
