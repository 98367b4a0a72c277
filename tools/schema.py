"""The border: what comes from outside is read, checked once against a dataclass, and trusted from there on.

Two mechanisms. `build(Question, raw)` makes a dataclass of what JSON gave, or says what is wrong with it in one sentence.
`with reading(path, "adapter"):` turns whatever goes wrong inside into one ValueError that names the file and the cause.
Files are opened by read_bytes, read_text and read_json.
"""

import dataclasses
import json
import math
import re
import reprlib
import struct
import types
import typing
from contextlib import contextmanager
from pathlib import Path

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 4, 80, 80
# What code that trusts a file raises where the file is not what it should be.
WRONG = (
    LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError, EOFError, struct.error, re.error,
)  # fmt: skip
NAMES = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", tuple: "a list", dict: "an object",
}  # fmt: skip


def printable(text, limit=math.inf):
    """A text as one line that any terminal shows: what does not print is a space; of a long one the middle is left out."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    half = limit // 2 - 3
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def shown(value):
    """Any value as a short text of one line, for a message about it."""
    return printable(SHORT.repr(value), 200)


def build(cls, raw):
    """An instance of the dataclass `cls` from a dict of JSON; keys that it has no field for are left out.

    Fields may be int, float, str, bool, None, Literal, a list, tuple or dict of such, another dataclass, or a union.
    Raises ValueError that names the field and the value.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{shown(raw)} is not an object with {', '.join(f.name for f in dataclasses.fields(cls))}")
    kinds, values = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name in raw:
            values[field.name] = fit(raw[field.name], kinds[field.name], field.name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f'"{field.name}" is missing')
    return cls(**values)


def fit(value, kind, name):
    """`value` as the type `kind`, or a ValueError that calls it `name`. A whole number fits a float, 4.0 no int."""
    inner, outer = typing.get_args(kind), typing.get_origin(kind)
    if outer in (typing.Union, types.UnionType):
        # None first, so that it is another kind's error that is told; then the very type: 1 stays an int
        for one in sorted(inner, key=lambda one: (one is not type(None), one is not type(value))):
            try:
                return fit(value, one, name)
            except ValueError as error:
                wrong = error
        raise wrong
    if outer is typing.Literal and value in inner:
        return value
    if outer in (list, tuple) and isinstance(value, list):
        return outer(fit(item, inner[0], f"{name}, item {number}") for number, item in enumerate(value, start=1))
    if outer is dict and isinstance(value, dict):
        return {key: fit(item, inner[1], f"{name}, {shown(key)}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return build(kind, value)
    if kind is float and type(value) in (int, float) and abs(value) < 1e300:  # NaN and infinity are not
        return float(value)
    if kind is int and type(value) is int and abs(value) >= 2**63:  # no size, count or index of anything
        raise ValueError(f'"{name}" is {shown(value)}, which is too large')
    whole = type(value) is kind and kind is not float  # the very type: True is no int
    if whole or kind in (typing.Any, object) or (kind is type(None) and value is None):
        return value
    wanted = f"one of {', '.join(map(str, inner))}" if outer is typing.Literal else NAMES.get(outer or kind, "null")
    raise ValueError(f'"{name}" must be {wanted}, not {shown(value)}')


# --- files -------------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path, kind, remedy=""):
    """While a file is read as `kind` ("adapter", "tokenizer"): whatever goes wrong is a ValueError that names both.

    remedy: what to do about it, for the sentence's end.
    """
    ending = remedy and f": {remedy}"
    try:
        yield
    except WRONG as error:
        raise ValueError(
            f"{path} is not a usable {kind} ({type(error).__name__}: {shown(str(error))}){ending}"
        ) from error
    except ValueError as error:  # with a sentence of its own, perhaps from inside another file
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is not a usable {kind}: {error}{ending}") from error


def read_bytes(path):
    """The content of a regular file. A folder or, worse, a pipe or device, which may never end, is a ValueError."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, pipe or device, not a file")
    return path.read_bytes()


def read_text(path):
    """The text of a file, with "\\n" as line ends. Raises ValueError when it is not UTF-8, OSError when it cannot be read."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "another encoding"
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}) but {encoding}: save it as UTF-8") from None
    if "\0" in text:  # every letter of English is half of one in UTF-16
        raise ValueError(f"{path} holds NUL characters, so it is probably UTF-16, or no text: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text, place):
    """The value of a JSON text. Raises ValueError that begins with `place`."""
    with reading(place, "JSON text"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            line = f", line {error.lineno}" if "\n" in text else ""
            raise ValueError(f"{place}{line}: not JSON ({error.msg} at column {error.colno})") from None


def read_json(path, remedy="download it again"):
    """The JSON object in a file. Raises FileNotFoundError or ValueError, one sentence with the file and the remedy."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: give a folder that has it, or {remedy}")
    try:
        content = parse_json(read_text(path), path)
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: {remedy}")
    return content
