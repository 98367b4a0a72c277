"""The border: dataclasses from JSON, and one sentence for whatever goes wrong while a file is read."""

import json
import math
import struct
from dataclasses import dataclass
from typing import Literal

import pytest

from tools.schema import build, reading


@dataclass
class Inner:
    n: int


@dataclass
class Outer:
    name: str
    rank: int
    rate: float = 0.5
    kind: Literal["lora", "mica"] = "lora"
    several: tuple[str, ...] | None = None
    table: dict[str, float] | None = None
    inner: Inner | None = None


def test_a_dataclass_is_built_from_json():
    raw = '{"name": "a", "rank": 8, "rate": 1, "several": ["x", "y"], "table": {"q": 2}, "inner": {"n": 3}, "more": 0}'
    built = build(Outer, json.loads(raw))
    assert built == Outer("a", 8, 1.0, "lora", ("x", "y"), {"q": 2.0}, Inner(3))
    assert type(built.rate) is float and type(built.table["q"]) is float


@pytest.mark.parametrize(
    "change, named",
    [
        ({"rank": 8.0}, "rank"), ({"rank": True}, "rank"), ({"rank": 10**400}, "rank"), ({"rate": math.nan}, "rate"),
        ({"rate": "x"}, "rate"), ({"kind": "dora"}, "lora, mica"), ({"several": ["x", 1]}, "several, item 2"),
        ({"table": {"q": "2"}}, "table, 'q'"), ({"inner": {}}, '"n" is missing'),
        ({"inner": 3}, "3 is not an object with n"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        build(Outer, {"name": "a", "rank": 8} | change)


@pytest.mark.parametrize(
    "go_wrong",
    [lambda: {}["key"], lambda: None.items(), lambda: struct.unpack("<I", b""), lambda: json.loads("[" * 10**5)],
)
def test_whatever_goes_wrong_names_the_file(go_wrong):
    with pytest.raises(ValueError, match=r"^some/file is not a usable adapter"), reading("some/file", "adapter"):
        go_wrong()


def test_an_inner_file_is_named_once():
    with (
        pytest.raises(ValueError) as caught,
        reading("folder", "model"),
        reading("folder/config.json", "configuration"),
    ):
        raise ValueError("no layers")
    assert str(caught.value) == "folder/config.json is not a usable configuration: no layers"
