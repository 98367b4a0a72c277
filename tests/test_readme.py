"""The documents: what they name and link exists, their commands parse, CI finds its two, the six lines print True."""

import ast
import re
import shlex
import subprocess
import sys
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


COMMANDS = sorted(
    {(document, program, tuple(rest)) for document in DOCUMENTS for program, rest in commands_of(document)}
)
PROGRAMS = sorted({program for _, program, _ in COMMANDS})


def test_commands_are_found():
    assert {"train.py", "eval_qa.py", "adapter_io.py", "data/make_data.py", "-m study", "-m exercises"} <= set(PROGRAMS)
    assert (ROOT / "README.md", "train.py", ("--method", "mica")) in COMMANDS


@pytest.fixture(scope="session")
def help_of():
    """{program: its --help}; asked for once each, because starting torch takes seconds."""
    said = {}

    def ask(program):
        if program not in said:
            command = [sys.executable, *program.split(), "--help"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            said[program] = done.stdout if done.returncode == 0 else None
        return said[program]

    return ask


def own_options(program):
    """The options that a program's own files name, read off their text."""
    name = program.removeprefix("-m ")
    path = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
    files = path.glob("*.py") if path.is_dir() else [path if path.suffix else path.with_suffix(".py")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return {node.value for text in texts for node in ast.walk(ast.parse(text)) if is_option(node)}


def is_option(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"--[a-z][\w-]*", node.value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_of_a_command_exists(program):
    name = program.removeprefix("-m ")
    file = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
    assert file.exists() or file.with_suffix(".py").exists(), f"{name} does not exist"


@pytest.mark.parametrize("document, program, rest", COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_the_options_of_a_command_exist(document, program, rest):
    used = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}
    assert used <= own_options(program) | {"--help"}, f"{document.name}: {program} {' '.join(rest)}"


@pytest.mark.slow
@pytest.mark.parametrize("document, program, rest", COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_a_command_parses_with_help(document, program, rest, help_of):
    if not own_options(program):
        return  # a script without arguments, which --help would run
    said = help_of(program)
    assert said and "usage:" in said
    used = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}
    assert all(option in said for option in used), f"{document.name}: {program} {' '.join(rest)}"


def test_every_file_of_the_map_exists():
    tree = README.split("## The map")[1].split("```")[1]
    names = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def anchors(document):
    """What GitHub makes of a document's headings: "## The map" is #the-map."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), f"{link} does not exist"
            assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_two_commands_stand_on_lines_of_their_own():
    commands = re.findall(r"^pip install -r (requirements[-\w]*\.txt) && (.+)$", README, flags=re.MULTILINE)
    assert commands == [("requirements.txt", "python train.py --method mica"), ("requirements-test.txt", "pytest")]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_lines_of_python_print_true(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(README.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "True\n"
