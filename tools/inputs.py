"""Reading what others wrote: texts and JSON of regular files, and the bounds of every size that comes out of them.

This is the one place where a file is opened for JSON, and where it is said how deep, how large and how odd it may be. Every
mistake is a ValueError (or an OSError) of one sentence that names the file.
"""

import json
import reprlib
from pathlib import Path

DEEPEST = 100  # objects and lists inside each other
# The largest whole numbers that a model's files may ask for: nothing larger was ever built, and what is not to be built
# is not to be allocated, looped over or multiplied out of 64 bits either.
SIZE = 2**20  # of a layer, in any direction
TOKENS = 2**31  # of a context
LAYERS = 1000
NUMBER = 1e12  # of a number with a point, such as rope_theta

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 5, 80, 80


def shown(value):
    """Any value as a short text of one line, for a message about it."""
    text = SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:98]}...{text[-98:]}"


def is_whole(value, low, high):
    """Whether it is an int, not a bool, between both."""
    return type(value) is int and low <= value <= high


def is_number(value, low=-NUMBER, high=NUMBER):
    """Whether it is an int or float, not a bool, NaN or infinite, between both."""
    return type(value) in (int, float) and low <= value <= high


def is_text(value):
    return isinstance(value, str)


def fits(value, shape):
    """Whether a value of JSON has a shape: a function that tells, [shape of each], {...: shape of each}, {key: its shape}.

    Keys beside those of the shape are allowed. fits([{"n": 1}], [{"n": is_number}]) is True.
    """
    if callable(shape):
        return bool(shape(value))
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if not isinstance(value, dict):
        return False
    if ... in shape:
        return all(fits(item, shape[...]) for item in value.values())
    return all(key in value and fits(value[key], part) for key, part in shape.items())


def or_null(shape):
    return lambda value: value is None or fits(value, shape)


def read_bytes(path):
    """The content of a regular file. A folder or, worse, a pipe or device, which may never end, is a ValueError."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, pipe or device, not a file")
    return path.read_bytes()


def read_text(path):
    """The text of a file. Raises ValueError when it is not UTF-8, OSError when it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None


def parse_json(text, place):
    """The value of a JSON text. Raises ValueError that begins with `place`, for what is not JSON, or not plain JSON.

    Not plain is what readers disagree about or cannot hold: NaN, a key given twice, more than DEEPEST levels. A whole number
    of more digits than 64 bits have becomes a float, perhaps infinite, which nothing takes for a size.
    """

    def refuse(name):
        raise ValueError(f"{name} is no number there")

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {shown(max(keys, key=keys.count))} is there twice")
        return found

    def whole(digits):
        return int(digits) if len(digits) < 20 else float(digits)

    too_deep = f"{place}: not plain JSON (more than {DEEPEST} levels inside each other)"
    try:
        value = json.loads(text, parse_constant=refuse, parse_int=whole, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise ValueError(f"{place}{line}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{place}: not plain JSON ({error})") from None
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(DEEPEST + 1):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        if not inside:
            return value
        level = [item for items in inside for item in items]
    raise ValueError(too_deep)


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
