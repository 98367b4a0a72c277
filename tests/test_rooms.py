"""Who may import whom: every import of ours runs downwards, and the oracles stay in tests/ and bench/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTED = {"tests", "bench"}
# What each room may import of ours, beside itself. A file of the core is a room of its own.
ALLOWED = {
    "tools/cli": {"tools/schema"},
    "tools/schema": set(),
    "tools": {"tools/cli", "tools/schema"},
    "gpt": {"tools/cli", "tools/schema"},
    "fast": {"tools/cli", "gpt"},
    "lora": {"fast"},
    "mica": {"fast", "lora"},
    "milora": {"fast", "lora"},
    "ablations": {"fast", "lora", "mica"},
    "corpus": {"tools/cli"},
    "questions": {"tools"},
    "rehearsal": {"tools/cli", "gpt", "fast", "corpus"},
    "adapter_io": {"tools", "gpt", "lora"},
    "eval_qa": {"tools", "gpt", "fast", "lora", "adapter_io", "corpus", "questions"},
    "comparison": {"tools", "fast", "adapter_io"},
    "train": {
        "tools", "gpt", "fast", "lora", "mica", "milora", "ablations", "corpus", "questions", "rehearsal", "eval_qa", "comparison",
    },  # fmt: skip
    "pictures": {"lora", "mica", "gpt"},
}
GROUND = {"tools/cli", "tools/schema"}  # which import nothing of ours
CORE = {
    "lora", "mica", "milora", "ablations", "corpus", "questions", "rehearsal", "adapter_io", "eval_qa", "comparison", "train",
}  # fmt: skip
# The rooms above the core import all of that, and data's worlds, but not each other.
ALLOWED |= {"data": {*CORE, "tools", "gpt"}}
ALLOWED |= {room: {*CORE, "tools", "gpt", "fast", "data"} for room in ("study", "exercises")}
ORACLES = {"transformers", "peft", "tokenizers", "lm_eval"}
EXTRAS = {"gpt/tokenizer.py": {"tokenizers"}}  # which reads what tiktoken cannot


def room_of(path):
    """The room of a file, as ALLOWED names it."""
    path = path.relative_to(ROOT).with_suffix("").as_posix()
    return path if path in ALLOWED else path.split("/")[0]


def modules_of(tree):
    """The dotted names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_imported(text):
    """The rooms of ours that a module's text imports from."""
    rooms = set()
    for name in modules_of(ast.parse(text)):
        first, *rest = name.split(".")
        inner = f"{first}/{rest[0]}" if rest else first
        if inner in ALLOWED or first in ALLOWED or first in TESTED:
            rooms.add(inner if inner in ALLOWED else first)
    return rooms


def against_the_rules(room, text):
    """Rooms that a module of `room` must not import, but does."""
    allowed = ALLOWED[room] | {room}
    if "tools" in allowed or room == "tools":
        allowed |= GROUND  # the ground floor is everyone's
    return rooms_imported(text) - allowed


FILES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part.startswith(".") or part in ("out", "venv", "runs") for part in path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_runs_against_the_rules(path):
    room, text = room_of(path), path.read_text(encoding="utf-8")
    if room in TESTED:
        return  # may import anything
    assert room in ALLOWED, f"{room} is a new room: say in ALLOWED what it may import"
    assert against_the_rules(room, text) == set()
    oracles = ORACLES & {name.split(".")[0] for name in modules_of(ast.parse(text))}
    oracles -= EXTRAS.get(path.relative_to(ROOT).as_posix(), set())
    assert not oracles or room in ("data", "exercises"), f"{path} imports {oracles}: oracles are for tests and bench"


@pytest.mark.parametrize(
    "room, text, wrong",
    [
        ("gpt", "import lora", {"lora"}),
        ("gpt", "from tools.cli import atomic\nfrom gpt.model import GPT", set()),
        ("gpt", "from tools.report import aligned", {"tools"}),
        ("fast", "def f():\n    from eval_qa import pack", {"eval_qa"}),
        ("tools/cli", "from tools.report import aligned", {"tools"}),
        ("tools/schema", "from tools.cli import progress", {"tools/cli"}),
        ("tools", "from eval_qa import pack", {"eval_qa"}),
        ("lora", "from gpt import GPT", {"gpt"}),
        ("mica", "import fast.subspace, train", {"train"}),
        ("train", "from tests.conftest import TINY", {"tests"}),
        ("train", "from study.stats import paired", {"study"}),
        ("study", "from train import adapt\nfrom tools import cli", set()),
        ("study", "import exercises", {"exercises"}),
    ],
)
def test_an_import_against_the_rules_is_found(room, text, wrong):
    assert against_the_rules(room, text) == wrong


def test_there_is_no_circle():
    """Rooms in an order in which each comes after all it may import."""
    placed, left = set(GROUND), set(ALLOWED) - GROUND
    while left:
        ready = {room for room in left if ALLOWED[room] <= placed}
        assert ready, f"a circle among {sorted(left)}"
        placed, left = placed | ready, left - ready
