"""Tables as people and programs write them: CSV in several encodings and with several delimiters, and Parquet."""

from __future__ import annotations

import codecs
import csv
import datetime
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from mrcg.errors import SourceError
from mrcg.text import normalised, normalised_or_none

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_DELIMITERS = (",", ";", "\t")
_BLOCK = 2**20

Row = Mapping[str, str | None]


class ManifestTable:
    """The rows of a table as texts by column. Names of columns compare without case and white space at their ends.

    Args:
        fs: file system of the table.
        path: of the table; one that ends in .parquet is Parquet, any other CSV.
        location: of the table as the user gave it, for messages.
        wanted: columns that are read; all others are ignored.

    Raises:
        SourceError: it is no table, its text is neither UTF-8 nor UTF-16, or two of the wanted columns have one name.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, location: str, wanted: Iterable[str]) -> None:
        self._fs, self._path, self._location = fs, path, location
        self._parquet = path.lower().endswith(".parquet")
        self._encoding, self._delimiter = "", ","
        if not self._parquet:
            self._encoding = self._find_encoding()
        stated = self._stated_columns()
        names = [normalised(name).casefold() for name in stated]
        wanted = set(wanted)
        for name, count in Counter(name for name in names if name in wanted).items():
            if count > 1:
                raise SourceError(f"--source {location} has {count} columns named {name}: remove all but one")
        #: Stated name of each wanted column that the table has, by its name.
        self._stated = {name: said for name, said in zip(names, stated, strict=True) if name in wanted}

    @property
    def columns(self) -> frozenset[str]:
        """The wanted columns that the table has."""
        return frozenset(self._stated)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the number, from 1, and the texts of each row.

        Raises:
            SourceError: the table is damaged.
        """
        try:
            for number, row in enumerate(self._parquet_rows() if self._parquet else self._csv_rows(), 1):
                yield number, {name: normalised_or_none(_text(row.get(said))) for name, said in self._stated.items()}
        except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise SourceError(f"--source {self._location} is not a readable table: {error}") from error

    def _csv_rows(self) -> Iterator[Mapping[str, Any]]:
        with self._open() as text:
            yield from csv.DictReader(text, delimiter=self._delimiter)

    def _parquet_rows(self) -> Iterator[Mapping[str, Any]]:
        with self._fs.open(self._path, "rb") as file:
            # Without threads: see `schemas.from_parquet`.
            for batch in pq.ParquetFile(file).iter_batches(columns=list(self._stated.values()), use_threads=False):
                yield from batch.to_pylist()

    def _stated_columns(self) -> list[str]:
        if self._parquet:
            try:
                with self._fs.open(self._path, "rb") as file:
                    return list(pq.read_schema(file).names)
            except pa.ArrowException as error:
                raise SourceError(f"--source {self._location} is not a readable table: {error}") from error
        with self._open() as text:
            header = text.readline()
        # Excel separates by semicolons where a comma is in decimal numbers, and its "Unicode text" by tabs.
        self._delimiter = max(_DELIMITERS, key=header.count)
        return next(csv.reader([header], delimiter=self._delimiter), [])

    def _open(self) -> IO[str]:
        file: IO[str] = self._fs.open(self._path, "r", encoding=self._encoding, newline="")
        return file

    def _find_encoding(self) -> str:
        """Return the encoding that a mark at the beginning states, else UTF-8, which the whole file has to be.

        An old code page cannot be told from another one, and a wrong guess would change names in silence.
        """
        with self._fs.open(self._path, "rb") as file:
            block = file.read(_BLOCK)
            if marked := next((encoding for mark, encoding in _MARKS if block.startswith(mark)), None):
                return marked
            decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
            while block:
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    line += error.object[: error.start].count(b"\n")
                    raise SourceError(
                        f"--source {self._location}: line {line} is neither UTF-8 nor UTF-16; "
                        "save the table again as 'CSV UTF-8'"
                    ) from error
                line += block.count(b"\n")
                block = file.read(_BLOCK)
        return "utf-8"


def _text(value: Any) -> str | None:
    """Return a value as a text; a whole number has no point, which a table gives it for the sake of a missing one."""
    match value:
        case None:
            return None
        case float() if math.isnan(value):
            return None
        case float() if value.is_integer():
            return str(int(value))
        case datetime.datetime():
            return value.date().isoformat()
        case _:
            return str(value)
