"""The documents: what they name and link exists, their commands parse, CI finds its two, the six lines print True."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", "venv", "out"} & set(path.parts)]


def commands_of(document):
    """The commands on our programs in a document: [(file or folder, options), ...]."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")  # a command may go on
    for module, name, rest in re.findall(r"\bpython3? (-m )?([\w/.]+)([^&;|`#\n]*)", text):
        path = ROOT / (name.replace(".", "/") if module else name)
        if name.endswith(".py") or path.is_dir() or path.with_suffix(".py").exists():
            yield (
                path if path.suffix or path.is_dir() else path.with_suffix(".py"),
                set(re.findall(r"--[a-z][\w-]*", rest)),
            )


def own_options(path):
    """The options that a program's own files name, read off their text: "--lr", or a field that is a flag(...)."""
    files = path.glob("*.py") if path.is_dir() else [path]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    fields = re.findall(r"^    (\w+): .+ = flag\(", text, flags=re.MULTILINE)
    return {*re.findall(r'"(--[a-z][\w-]*)"', text), *(f"--{field.replace('_', '-')}" for field in fields), "--help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_programs_of_all_commands_and_their_options_exist(document):
    commands = list(commands_of(document))
    assert document != ROOT / "README.md" or (ROOT / "train.py", {"--method"}) in commands
    for path, options in commands:
        assert path.exists() and options <= own_options(path), f"{path}: {options - own_options(path)}"


@pytest.mark.parametrize("module", ["train", "eval_qa", "adapter_io"])
def test_help_names_the_options_that_are_read_off_a_programs_text(monkeypatch, capsys, module):
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    options = own_options(ROOT / f"{module}.py")
    assert options <= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out)) and len(options) > 2


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
