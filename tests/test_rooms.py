"""Who may import whom: every import of ours runs downwards, and the oracles stay in tests/ and bench/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTED = {"tests", "bench"}
CORE = {
    "lora", "mica", "milora", "ablations", "corpus", "questions", "rehearsal", "adapter_io", "eval_qa", "comparison",
    "train",
}  # fmt: skip
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
    "train": (CORE | {"tools", "gpt", "fast"}) - {"train", "adapter_io"},
    "pictures": {"lora", "mica", "gpt"},
}
GROUND = {"tools/cli", "tools/schema"}  # which import nothing of ours
# The rooms above the core import all of that, and data's worlds, but not each other.
ALLOWED |= {"data": {*CORE, "tools", "gpt"}}
ALLOWED |= {room: {*CORE, "tools", "gpt", "fast", "data"} for room in ("study", "exercises")}
ORACLES = {"transformers", "peft", "tokenizers", "lm_eval"}
EXTRAS = {"gpt/tokenizer.py": {"tokenizers"}}  # which reads what tiktoken cannot


def room_of(path):
    """The room of a file, as ALLOWED names it."""
    path = path.relative_to(ROOT).with_suffix("").as_posix()
    return path if path in ALLOWED else path.split("/")[0]


def names_imported(text):
    """The dotted names that a module's text imports, anywhere in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def against_the_rules(room, text):
    """Rooms that a module of `room` must not import, but does."""
    found = set()
    for name in names_imported(text):
        first, *rest = name.split(".")
        inner = f"{first}/{rest[0]}" if rest else first
        found |= {inner if inner in ALLOWED else first} & (ALLOWED.keys() | TESTED)
    # The ground floor is everyone's who may use the tools.
    return found - ALLOWED[room] - {room} - (GROUND if room == "tools" or "tools" in ALLOWED[room] else set())


ELSEWHERE = TESTED | {"out", "venv", "runs"}
FILES = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("[!.]*/**/*.py") if room_of(path) not in ELSEWHERE)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_runs_against_the_rules(path):
    room, text = room_of(path), path.read_text(encoding="utf-8")
    assert room in ALLOWED, f"{room} is a new room: say in ALLOWED what it may import"
    assert against_the_rules(room, text) == set()
    oracles = ORACLES & {name.split(".")[0] for name in names_imported(text)}
    oracles -= EXTRAS.get(path.relative_to(ROOT).as_posix(), set())
    assert not oracles or room in ("data", "exercises"), f"{path} imports {oracles}: oracles are for tests and bench"


@pytest.mark.parametrize(
    "room, text, wrong",
    [
        ("gpt", "import lora\nfrom tools.cli import atomic\nfrom gpt.model import GPT", {"lora"}),
        ("fast", "def f():\n    from eval_qa import pack", {"eval_qa"}),
        ("tools/schema", "from tools.cli import progress", {"tools/cli"}),
        ("train", "from tests.conftest import TINY\nfrom study.stats import paired", {"tests", "study"}),
        ("study", "from train import adapt\nfrom tools import cli\nimport exercises", {"exercises"}),
    ],
)
def test_an_import_against_the_rules_is_found(room, text, wrong):
    assert against_the_rules(room, text) == wrong
