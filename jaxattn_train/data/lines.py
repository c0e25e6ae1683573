"""Texts without labels: lines of a file or of standard input, or a column of a table."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxattn_train.data.tables import read_table
from jaxattn_train.errors import UserError


class Line(NamedTuple):
    """A text, and its name in error messages."""

    text: str
    name: str


def check_out(out: str | None, file: str | None) -> None:
    """Raises where the file to write is the one to read."""
    if out is not None and file is not None and Path(out).resolve() == Path(file).resolve():
        raise UserError(f"--out must be another file than the one of the texts; got {out}.")


def read_texts(file: str | None, text_column: str | None) -> Iterator[Line]:
    """The texts of a file or of standard input, which is read as it comes.

    Raises:
        UserError: a file that cannot be read, has no such column, or holds no text.
    """
    if file is not None and file != "-" and Path(file).suffix != ".txt":
        table = read_table(Path(file), text_column=text_column or "text", label_column=None)
        yield from map(Line, table.texts, table.places)
        return
    if text_column is not None:
        raise UserError(f"--text-column is for tables; got it with {file or 'standard input'}.")
    source = "standard input" if file in (None, "-") else file
    number = 0
    try:
        # As bytes, because the locale decides how Python decodes standard input.
        with sys.stdin.buffer if file is None or file == "-" else Path(file).open("rb") as stream:
            for number, content in enumerate(stream, 1):
                text = content.decode("utf-8-sig" if number == 1 else "utf-8")
                yield Line(text.removesuffix("\n").removesuffix("\r"), f"the line {number} of {source}")
    except OSError as error:
        raise UserError(f"cannot read {source}: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"line {number} of {source} must be UTF-8 text; got the byte 0x{content[error.start]:02x}. Convert it, "
            "for example from Latin-1 with iconv -f latin1 -t utf-8."
        ) from error
    if not number:
        raise UserError(f"{source} holds no text; give one a line.")
