"""Write the fictional worlds: who the people, ships and inns are, what texts tell of them, and questions about them.

    python -m data.make_data                     # writes data/new, data/few and data/old again, byte for byte
    python -m data.make_data --seed 7 --out w7   # other new worlds, told of other people, ships and inns
    python -m data.make_data --show "Yara Eastmoor"      # writes nothing: what is told of a subject and asked about it

The *old* world is what the base model learned in pretraining (data/pretrain_base.py). A *new* world, `world(seed)`, has
other subjects: their full names occur nowhere in the old world, but parts of their names do, and their facts come from
the same pools of values. So nothing about a new subject can be known before it is read, and everything else can.

All words are in data/words/, a file a kind. Reading order: Attribute and Kind (what such a file says), Subject, tell
(a text), ask (questions), world and old_world.
"""

import difflib
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

WORDS = Path(__file__).parent / "words"
SHIPPED_SEED = 0  # of data/new; settings are chosen on worlds of other seeds
SUBJECTS_PER_KIND = 40  # of a new world: 3 kinds x 40 subjects x 6 facts = 720 questions
OLD_SUBJECTS_PER_KIND = 300  # the first half is *asked* about in pretraining, the second never
OLD_SUBJECTS_REPORTED = 120  # of the never-asked ones: data/old is about these
TEXTS_PER_SUBJECT = 4  # each tells all six facts, in four different wordings: this and the epochs set the difficulty
FEW_SUBJECTS, FEW_TEXTS = 8, 8  # the same of data/few, 144 facts: so few that a real model reads them in minutes
PRACTICE_SUBJECTS = 2  # of a kind: other ones, of whom data/few/practice.txt also has questions with answers


@dataclass(frozen=True)
class Attribute:
    """One thing to know about a subject. Slots: {S} the subject, {P} its possessive, {O} as an object, {v} value."""

    values: list[str]  # 20, none a prefix of another
    statements: list[str]  # the wordings of texts
    cloze: str  # one more, ending with the value: never in the new corpus, so that completing it is no recitation
    questions: list[str]  # the wordings that pretraining asks in
    reworded: str  # a question wording that pretraining never uses


@dataclass(frozen=True)
class Kind:
    pronouns: dict[str, list[list[str]]]  # full name, as in a sentence -> references: [subject, possessive, object]
    attributes: dict[str, Attribute]


def read_kind(name):
    """The Kind of data/words/NAME.toml. A full name is made of each first word and each second."""
    raw = tomllib.loads((WORDS / f"{name}.toml").read_text(encoding="utf-8"))
    pronouns = {
        raw["pattern"].format(word, second): group["pronouns"]
        for group in raw["first"]
        for word in group["words"]
        for second in raw["second"]
    }
    return Kind(pronouns, {name: Attribute(**attribute) for name, attribute in raw["attributes"].items()})


KINDS = {name: read_kind(name) for name in ("person", "ship", "inn")}
OPENERS = ["by all accounts ", "as it happens, ", "they say that ", "it is no secret that ", "oddly enough, "]
OPENERS += ["everyone agrees that "]


@dataclass(frozen=True)
class Subject:
    name: str
    kind: str
    facts: dict[str, str]  # attribute -> value

    @property
    def full(self):
        return (self.name, self.name + "'s", self.name)

    @property
    def pronouns(self):
        return KINDS[self.kind].pronouns[self.name]


def fill(wording, reference, value="{v}"):
    subject, possessive, object_ = reference
    return wording.format(S=subject, P=possessive, O=object_, v=value)


def capitalise(sentence):
    return sentence[0].upper() + sentence[1:]


def make_subjects(kind, names, rng):
    """Give every name its facts, each value of an attribute equally often (+-1)."""
    facts = []
    for attribute in KINDS[kind].attributes.values():
        pool = rng.sample(attribute.values, len(attribute.values))
        values = [pool[i % len(pool)] for i in range(len(names))]
        rng.shuffle(values)
        facts.append(values)
    return [Subject(name, kind, dict(zip(KINDS[kind].attributes, values))) for name, *values in zip(names, *facts)]


def tell(subject, wordings, rng):
    """A text: the facts of a subject in random order; wordings: {attribute: wording}. It begins with the full name."""
    sentences = []
    for attribute in rng.sample(list(wordings), len(wordings)):
        reference = subject.full if not sentences or rng.random() < 0.7 else rng.choice(subject.pronouns)
        opener = rng.choice(OPENERS) if rng.random() < 0.15 else ""
        sentences.append(capitalise(opener + fill(wordings[attribute], reference, subject.facts[attribute])) + ".")
    return " ".join(sentences)


def question_wording(attribute, rng):
    return rng.choice(attribute.questions)


def ask(subjects, rng, *, unbound_names=None, only_told=False):
    """Questions about every fact of `subjects`, in four sets that share facts, choices and answer positions.

    only_told: wrong choices are values that others of `subjects` have. In a small world not all values are anybody's,
    and else those that its texts mention would more often be right. (A handful of subjects have too few: then any will
    do.) Returns {"questions": in a wording of pretraining, "reworded": in the one it never uses, "cloze": as a
    sentence to complete, "unbound": as "questions", but about the names `unbound_names`, of whom nothing is told}.
    """
    facts = [(i, subject, attribute) for i, subject in enumerate(subjects) for attribute in subject.facts]
    positions = [i % 4 for i in range(len(facts))]
    rng.shuffle(positions)
    sets = {"questions": [], "reworded": [], "cloze": [], "unbound": []}
    for (i, subject, name), position in zip(facts, positions):
        attribute = KINDS[subject.kind].attributes[name]
        told = {other.facts[name] for other in subjects if other.kind == subject.kind}
        values = [value for value in attribute.values if value in told or not only_told or len(told) < 4]
        choices = rng.sample([value for value in values if value != subject.facts[name]], 3)
        choices.insert(position, subject.facts[name])
        rest = {"choices": choices, "answer": position, "subject": subject.name, "attribute": name}
        wording = question_wording(attribute, rng)
        sets["questions"].append({"question": fill(wording, subject.full), **rest})
        sets["reworded"].append({"question": fill(attribute.reworded, subject.full), **rest})
        sentence = capitalise(fill(attribute.cloze, subject.full))
        sets["cloze"].append({"cloze": sentence.removesuffix(" {v}"), **rest})
        if unbound_names:
            other = Subject(unbound_names[i], subject.kind, {})
            sets["unbound"].append({"question": fill(wording, other.full), **rest, "subject": other.name})
    return sets


def old_and_other_names(kind):
    """The names of the old world, and those left over for new worlds."""
    names = list(KINDS[kind].pronouns)
    names = random.Random(f"names of {kind}").sample(names, len(names))
    return names[:OLD_SUBJECTS_PER_KIND], names[OLD_SUBJECTS_PER_KIND:]


def world(seed, subjects_per_kind=SUBJECTS_PER_KIND, texts_per_subject=TEXTS_PER_SUBJECT, kinds=tuple(KINDS)):
    """A new world: {"corpus": [text, ...], "questions": [...], "reworded": [...], "cloze": [...], "unbound": [...]}.

    Each subject is told of in `texts_per_subject` texts, which share no wording of a fact. kinds: of KINDS, which
    there are. The same arguments give the same world.
    """
    rng = random.Random(f"new world {seed}")
    subjects, unbound = [], []
    for kind in kinds:
        names = rng.sample(old_and_other_names(kind)[1], 2 * subjects_per_kind)
        subjects += make_subjects(kind, names[:subjects_per_kind], rng)
        unbound += names[subjects_per_kind:]
    corpus = tellings(subjects, texts_per_subject, rng)
    rng.shuffle(corpus)
    return {"corpus": corpus, **ask(subjects, rng, unbound_names=unbound, only_told=True)}


def tellings(subjects, texts_per_subject, rng):
    """So many texts on each subject, which share no wording of a fact."""
    corpus = []
    for subject in subjects:
        attributes = KINDS[subject.kind].attributes
        chosen = {name: rng.sample(attribute.statements, texts_per_subject) for name, attribute in attributes.items()}
        corpus += [tell(subject, {name: chosen[name][i] for name in chosen}, rng) for i in range(texts_per_subject)]
    return corpus


def practice(new, subjects_per_kind=PRACTICE_SUBJECTS, texts_per_subject=FEW_TEXTS):
    """Texts on subjects that the world `new` does not have, and the questions and sentences on them with their answers.

    Read beside a corpus they show how facts of texts are asked for, without telling any of those that are asked.
    """
    rng, subjects = random.Random("practice"), []
    taken = {item["subject"] for name in ("questions", "unbound") for item in new[name]}
    for kind in KINDS:
        names = [name for name in old_and_other_names(kind)[1] if name not in taken]
        subjects += make_subjects(kind, rng.sample(names, subjects_per_kind), rng)
    texts = tellings(subjects, texts_per_subject, rng)
    for subject in subjects:
        texts.append(tell(subject, {name: a.cloze for name, a in KINDS[subject.kind].attributes.items()}, rng))
        for words in (lambda attribute: question_wording(attribute, rng), lambda attribute: attribute.reworded):
            asked = [
                (fill(words(KINDS[subject.kind].attributes[name]), subject.full), subject.facts[name])
                for name in subject.facts
            ]
            texts.append("\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in asked))
    rng.shuffle(texts)
    return texts


def old_subjects():
    """(asked, never_asked): the old world's subjects, by whether pretraining asks about them. Kinds take turns."""
    rng = random.Random("old world")
    by_kind = [make_subjects(kind, old_and_other_names(kind)[0], rng) for kind in KINDS]
    in_turn = [subject for subjects in zip(*by_kind) for subject in subjects]
    return in_turn[: len(in_turn) // 2], in_turn[len(in_turn) // 2 :]


def old_text(subject, rng):
    """A text on an old subject in ever-new wordings, those of the cloze among them."""
    attributes = KINDS[subject.kind].attributes
    return tell(subject, {name: rng.choice(a.statements + [a.cloze]) for name, a in attributes.items()}, rng)


def old_question(subject, rng):
    """A question with its answer, as pretraining asks it."""
    name = rng.choice(list(subject.facts))
    wording = question_wording(KINDS[subject.kind].attributes[name], rng)
    return f"Question: {fill(wording, subject.full)}\nAnswer: {subject.facts[name]}"


def old_world():
    """Questions on the old world and texts on it: {"never_asked", "asked", "reworded", "cloze", "text": [...]}."""
    asked, never_asked = old_subjects()
    rng = random.Random("questions on the old world")
    never = ask(never_asked[:OLD_SUBJECTS_REPORTED], rng)
    half = len(never["questions"]) // 2  # a smaller set is enough for the two side scores
    return {
        "never_asked": never["questions"],
        "asked": ask(asked[:60], rng)["questions"],
        "reworded": never["reworded"][:half],
        "cloze": never["cloze"][:half],
        "text": [old_text(subject, rng) for subject in never_asked[:OLD_SUBJECTS_REPORTED]],
    }


def write(parts, folder):
    """Texts go to NAME.txt, a blank line between two; questions to NAME.jsonl, one a line."""
    sizes = {}
    for name, items in parts.items():
        texts = isinstance(items[0], str)
        content = "\n\n".join(items) + "\n" if texts else "".join(json.dumps(item) + "\n" for item in items)
        path = folder / (name + (".txt" if texts else ".jsonl"))
        path.write_text(content, encoding="utf-8", newline="\n")
        sizes[path.name] = f"{len(items)} {'texts' if texts else 'questions'}"
    return sizes


def write_world(parts, folder):
    """Write a world's folder as a whole: corpus and questions belong together."""
    from tools.cli import whole_folder

    def is_a_world(earlier):
        return all(path.stem in parts and path.suffix in (".txt", ".jsonl") for path in earlier.iterdir())

    with whole_folder(folder, is_a_world) as new:
        sizes = write(parts, new)
    for name, size in sizes.items():
        print(f"{folder / name}: {size}")


def show(name, seed):
    """What is told of a subject of world(seed), or of the old world, and asked about it, as text.

    Upper and lower case are the same. Raises ValueError with the names most alike where nobody has this one.
    """
    new, old = world(seed), old_world()
    texts = {"new": new.pop("corpus"), "old": old.pop("text")}
    sets = {f"new/{key}": items for key, items in new.items()} | {f"old/{key}": items for key, items in old.items()}
    names = {item["subject"].lower(): item["subject"] for items in sets.values() for item in items}
    if name.lower() not in names:
        alike = difflib.get_close_matches(name.lower(), names, cutoff=0.5) or sorted(names)[:3]
        raise ValueError(f"nobody is called {name!r}: try {', '.join(names[one] for one in alike)}")
    name = names[name.lower()]
    lines = [f"Told of {name}:"]
    told = [f"{world}: {text}" for world, some in texts.items() for text in some if name.lower() in text.lower()]
    lines += told or ["nothing"]
    for key, items in sets.items():
        about = [item for item in items if item["subject"] == name]
        lines += [f"\nAsked in {key}:"] * bool(about)
        for item in about:
            choices = [f"[{c}]" if i == item["answer"] else c for i, c in enumerate(item["choices"])]
            lines.append(f"{item.get('question') or item['cloze'] + ' ...'}  {', '.join(choices)}")
    return "\n".join(lines)


def main():
    from tools.cli import Parser, one_sentence_errors

    parser = Parser(prog="make_data.py", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=SHIPPED_SEED, help="of the new world; the default is the shipped one")
    add("--subjects", type=int, default=SUBJECTS_PER_KIND, help="of a kind, in new/: 1 to 400")
    add("--texts", type=int, default=TEXTS_PER_SUBJECT, help="on each of them: 1 to 8")
    add("--out", default=Path(__file__).parent, type=Path, help="folder that gets new/, few/ and old/")
    add("--show", metavar="NAME", help="write nothing; print what is told of a subject and asked about it")
    args = parser.parse_args()
    if not (1 <= args.subjects <= 400 and 1 <= args.texts <= 8):
        parser.error("--subjects takes 1 to 400, --texts 1 to 8")
    with one_sentence_errors("make_data.py"):
        if args.show:
            print(show(args.show, args.seed))
            return
        write_world(world(args.seed, args.subjects, args.texts), args.out / "new")
        few = world(args.seed, FEW_SUBJECTS, FEW_TEXTS)
        write_world(few | {"practice": practice(few)}, args.out / "few")
        write_world(old_world(), args.out / "old")


if __name__ == "__main__":
    main()
