"""The documents: what they name and link exists, their commands parse, CI finds its two, the six lines print True."""

import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", "venv", "out"} & set(path.parts)]


def commands_of(document):
    """The commands on our programs in a document: [("train.py", ["--method", "mica"]), ("-m study", []), ...]."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")  # a command may go on
    text = text.replace("```", "")  # else what stands between two quotations would be taken for one
    lines = re.findall(r"^(?:    )?([^|`#\n]*\bpython3? .+)$", text, flags=re.MULTILINE) + re.findall(
        r"`([^`]+)`", text
    )
    for line in lines:
        line = re.sub(r"\s#\s.*$", "", " ".join(line.split()))  # what follows is a comment
        for found in re.finditer(r"\bpython3? (-m )?([\w/.]+)([^&;|]*)", line):
            module, name, rest = found.groups()
            path = ROOT / name.replace(".", "/")
            if module and (path.is_dir() or path.with_suffix(".py").exists()):
                yield f"-m {name}", shlex.split(rest)
            elif name.endswith(".py"):
                yield name, shlex.split(rest)


COMMANDS = {(document, program, tuple(rest)) for document in DOCUMENTS for program, rest in commands_of(document)}


@cache
def own_options(program):
    """The options that a program's own files name, read off their text: "--lr", or a field that is a flag(...)."""
    name = program.removeprefix("-m ")
    path = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
    files = path.glob("*.py") if path.is_dir() else [path if path.suffix else path.with_suffix(".py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    fields = re.findall(r"^    (\w+): .+ = flag\(", text, flags=re.MULTILINE)
    return {*re.findall(r'"(--[a-z][\w-]*)"', text), *(f"--{field.replace('_', '-')}" for field in fields)}


def options_of(rest):
    return {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}


def test_the_programs_of_all_commands_and_their_options_exist():
    assert (ROOT / "README.md", "train.py", ("--method", "mica")) in COMMANDS
    for document, program, rest in COMMANDS:
        name = program.removeprefix("-m ")
        file = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
        assert file.exists() or file.with_suffix(".py").exists(), f"{document.name}: {name} does not exist"
        unknown = options_of(rest) - own_options(program) - {"--help"}
        assert not unknown, f"{document.name}: {program} {' '.join(rest)}"


@pytest.mark.parametrize(
    "module, name", [("train", "train.py"), ("eval_qa", "eval_qa.py"), ("study.__main__", "-m study")]
)
def test_the_commands_of_a_program_parse(monkeypatch, capsys, module, name):
    """As --help names their options."""
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    said = capsys.readouterr().out
    for document, program, rest in COMMANDS:
        if program == name:
            assert all(option in said for option in options_of(rest)), f"{document.name}: {' '.join(rest)}"


def test_every_file_of_the_map_exists():
    tree = README.split("## The map")[1].split("```")[1]
    names = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def anchors(document):
    """What GitHub makes of a document's headings: "## The map" is #the-map."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                name, _, anchor = link.partition("#")
                target = document.parent / name if name else document
                assert target.exists(), f"{document.name}: {link} does not exist"
                assert not anchor or anchor in anchors(target), f"{document.name}: {link}: no such heading"


def test_the_two_commands_stand_on_lines_of_their_own():
    commands = re.findall(r"^pip install -r (requirements[-\w]*\.txt) && (.+)$", README, flags=re.MULTILINE)
    assert commands == [("requirements.txt", "python train.py --method mica"), ("requirements-test.txt", "pytest")]


def test_the_lines_of_python_print_true(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(README.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "True\n"
