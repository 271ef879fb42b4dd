"""CSV files as people write them: byte-order marks, spaces after commas, other delimiters, trailing empty cells."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE = 1 << 16  # characters from which the use of spaces is inferred
_DELIMITERS = ",;\t"
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class ForeignTableError(ValueError):
    """A file without the expected columns; perhaps it belongs to another program."""


@dataclass(frozen=True)
class Table:
    """A CSV file, usually with a header.

    Attributes:
        path: the file.
        header: names of the columns, stripped.
        delimiter: comma, semicolon, or tab.
        encoding: "utf-8-sig", or "utf-16" if the file starts with its byte-order mark.
        spaced: whether spaces after delimiters are ignored.
        has_header: whether the first line holds the names of the columns.
    """

    path: Path
    header: list[str]
    delimiter: str
    encoding: str
    spaced: bool
    has_header: bool = True

    @classmethod
    def open(cls, path: Path, columns: Sequence[str], like: Sequence[str] = (), encoding: str | None = None) -> "Table":
        """Read the header; the delimiter is the one that yields the most names of `columns` and `like`.

        Without `encoding`, the file is in UTF-8 or UTF-16.

        Raises:
            ForeignTableError: the file lacks one of `columns`, or is not text.
        """
        if encoding is None:
            with path.open("rb") as file:
                encoding = _BYTE_ORDER_MARKS.get(file.read(2), "utf-8-sig")
        try:
            with path.open(encoding=encoding, newline="") as file:
                # A record may span several lines, but the names of columns do not.
                line = file.readline(csv.field_size_limit())
                sample = file.read(_SAMPLE)
        except UnicodeError as error:
            raise ForeignTableError(f"{path}: not UTF-8 ({_reason(error)}); save it as UTF-8") from None
        headers = {delimiter: _header(line, delimiter) for delimiter in _DELIMITERS}
        delimiter = max(headers, key=lambda key: len({*columns, *like}.intersection(headers[key])))
        header = headers[delimiter]
        if missing := [name for name in columns if name not in header]:
            names = ", ".join(filter(None, header)) or "none"
            raise ForeignTableError(f"{path}: lacks the column {', '.join(missing)}; its columns are {names}")
        spaced = f"{delimiter} " in line or _opens_quotes_after_spaces(sample, delimiter)
        return cls(path, header, delimiter, encoding, spaced)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the cells of each row that is not empty.

        Short rows are padded with empty cells, and empty cells past the last column are dropped; a row that still has
        more cells than columns is left for the caller to judge.

        Raises:
            ValueError: the file is not well-formed CSV in UTF-8; the message names the line.
        """
        width = len(self.header)
        line = 1
        try:
            with self.path.open(encoding=self.encoding, newline="") as file:
                reader = csv.reader(file, delimiter=self.delimiter, skipinitialspace=self.spaced, strict=True)
                if self.has_header:
                    next(reader, None)
                line = reader.line_num + 1
                for cells in reader:
                    while len(cells) > width and not cells[-1].strip():
                        cells.pop()
                    if any(cell.strip() for cell in cells):
                        yield reader.line_num, cells + [""] * (width - len(cells))
                    line = reader.line_num + 1
        except UnicodeError as error:
            raise ValueError(f"{self.path}: not UTF-8 ({_reason(error)}); save it as UTF-8") from None
        except csv.Error as error:
            reason = "a quote is never closed" if "unexpected end" in str(error) else str(error)
            raise ValueError(f"{self.path} line {line}: not well-formed CSV ({reason})") from None

    def records(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line number of each row, and its cells by column; cells without a column are left out."""
        for line, cells in self.rows():
            yield line, dict(zip(self.header, cells, strict=False))


def _header(line: str, delimiter: str) -> list[str]:
    reader = csv.reader(io.StringIO(line), delimiter=delimiter, skipinitialspace=True)
    try:
        return [name.strip() for name in next(reader, [])]
    except csv.Error:
        return []


def _opens_quotes_after_spaces(text: str, delimiter: str) -> bool:
    """Whether quotes that follow a delimiter and spaces enclose whole cells."""
    opened = re.findall(f'{delimiter} +"', text)
    enclosed = re.findall(f'{delimiter} +"(?:[^"]|"")*"[ \t]*(?=[{delimiter}\r\n]|$)', text)
    return bool(opened) and len(opened) == len(enclosed)


def _reason(error: UnicodeError) -> str:
    return getattr(error, "reason", None) or str(error)
