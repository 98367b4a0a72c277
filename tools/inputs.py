"""Goes away: import from tools.schema; shapes and sizes are checked by its `build`."""

from tools.schema import parse_json, read_bytes, read_json, read_text, shown  # noqa: F401

# The largest whole numbers that a model's files may ask for: nothing larger was ever built, and what is not to be built
# is not to be allocated, looped over or multiplied out of 64 bits either.
SIZE = 2**20  # of a layer, in any direction
TOKENS = 2**31  # of a context
LAYERS = 1000
NUMBER = 1e12  # of a number with a point, such as rope_theta


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
