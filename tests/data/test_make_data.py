"""data/make_data.py: worlds are reproducible and balanced, and nothing about a new subject can be known beforehand."""

import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data.make_data import (
    FEW_SUBJECTS,
    FEW_TEXTS,
    KINDS,
    OLD_SUBJECTS_PER_KIND,
    OPENERS,
    SHIPPED_SEED,
    TEXTS_PER_SUBJECT,
    Subject,
    capitalise,
    fill,
    old_question,
    old_subjects,
    old_text,
    old_world,
    practice,
    show,
    world,
)

DATA = Path(__file__).resolve().parents[2] / "data"
SEEDS = [0, 1]
SETS = ["questions", "reworded", "cloze", "unbound"]
ATTRIBUTES = {name: attribute for kind in KINDS.values() for name, attribute in kind.attributes.items()}

new = cache(world)
old = cache(old_world)


def bare(name):
    """A name as it stands anywhere in a sentence: "The Grey Petrel" may begin one."""
    return name.removeprefix("the ")


def subjects_of(items):
    """The Subjects that questions ask about, with the right choices as their facts, in order of appearance."""
    facts = {}
    for item in items:
        facts.setdefault(item["subject"], {})[item["attribute"]] = item["choices"][item["answer"]]
    kinds = {frozenset(kind.attributes): name for name, kind in KINDS.items()}
    return [Subject(name, kinds[frozenset(known)], known) for name, known in facts.items()]


def texts_on(subject, corpus):
    return [text for text in corpus if bare(subject.name) in text]


def possible_sentences(subject):
    """{sentence: (attribute, statement)} of everything that a text may say of a subject."""
    return {
        capitalise(opener + fill(statement, reference, value)) + ".": (name, statement)
        for name, value in subject.facts.items()
        for statement in ATTRIBUTES[name].statements
        for reference in [subject.full, *subject.pronouns]
        for opener in ["", *OPENERS]
    }


def what_pretraining_says():
    """A pass over the old world, as in data/pretrain_base.py: a text on each subject, questions on the asked half."""
    rng = random.Random(0)
    asked, never_asked = old_subjects()
    yield from (old_text(subject, rng) for subject in asked + never_asked)
    yield from (old_question(subject, rng) for subject in asked for _ in range(4))


def test_the_same_seed_gives_the_same_world_and_another_seed_another_one():
    assert world(5) == new(5)
    assert new(5)["corpus"] != new(6)["corpus"]
    assert {q["subject"] for q in new(5)["questions"]} != {q["subject"] for q in new(6)["questions"]}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_new_world_asks_for_six_facts_of_each_of_120_subjects_in_four_ways(seed):
    for name in SETS:
        asked = Counter(item["subject"] for item in new(seed)[name])
        assert len(asked) == 120 and set(asked.values()) == {6}
        assert len({(item["subject"], item["attribute"]) for item in new(seed)[name]}) == 720


@pytest.mark.parametrize("seed", SEEDS)
def test_the_four_sets_share_choices_and_answers_in_the_same_order(seed):
    parts = new(seed)
    for items in zip(*(parts[name] for name in SETS), strict=True):
        assert len({(tuple(item["choices"]), item["answer"], item["attribute"]) for item in items}) == 1
    assert [q["subject"] for q in parts["reworded"]] == [q["subject"] for q in parts["questions"]]
    assert [q["subject"] for q in parts["cloze"]] == [q["subject"] for q in parts["questions"]]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_unbound_name_stands_for_one_subject_of_its_kind(seed):
    pairs = {(q["subject"], u["subject"]) for q, u in zip(new(seed)["questions"], new(seed)["unbound"])}
    assert len(pairs) == len({u for _, u in pairs}) == 120
    for subject, unbound in zip(subjects_of(new(seed)["questions"]), subjects_of(new(seed)["unbound"])):
        assert subject.kind == unbound.kind and subject.name != unbound.name


def test_every_value_is_the_right_answer_equally_often():
    asked, never_asked = old_subjects()
    for subjects in [asked + never_asked] + [subjects_of(new(seed)["questions"]) for seed in SEEDS]:
        for name, attribute in ATTRIBUTES.items():
            counts = Counter(subject.facts[name] for subject in subjects if name in subject.facts)
            assert set(counts) == set(attribute.values)
            assert max(counts.values()) - min(counts.values()) <= 1, name


@pytest.mark.parametrize("seed", [*SEEDS, "old"])
def test_choices_are_four_values_of_one_pool_and_right_positions_are_evenly_spread(seed):
    for name, items in (old() if seed == "old" else new(seed)).items():
        if name in ("corpus", "text"):
            continue
        for item in items:
            assert len(set(item["choices"])) == len(item["choices"]) == 4
            assert set(item["choices"]) <= set(ATTRIBUTES[item["attribute"]].values)
        spread = Counter(item["answer"] for item in items)
        assert set(spread) == {0, 1, 2, 3}
        halved = seed == "old" and name in ("reworded", "cloze")  # the first half of evenly spread ones
        assert max(spread.values()) - min(spread.values()) <= (0.15 * len(items) if halved else 1), (name, spread)


def test_new_and_unbound_names_do_not_occur_in_the_old_world():
    said = ("\n".join(what_pretraining_says()) + str(old())).lower()
    for seed in SEEDS:
        for name in {item["subject"] for part in SETS for item in new(seed)[part]}:
            assert bare(name).lower() not in said
    assert all(bare(subject.name).lower() in said for half in old_subjects() for subject in half)


@pytest.mark.parametrize("seed", SEEDS)
def test_unbound_names_do_not_occur_in_the_corpus(seed):
    corpus = "\n".join(new(seed)["corpus"]).lower()
    for item in new(seed)["unbound"]:
        assert bare(item["subject"]).lower() not in corpus


@pytest.mark.parametrize("seed", SEEDS)
def test_each_fact_of_a_new_subject_is_told_in_exactly_so_many_texts_and_as_many_wordings(seed):
    corpus = new(seed)["corpus"]
    assert len(corpus) == len(set(corpus)) == 120 * TEXTS_PER_SUBJECT
    for subject in subjects_of(new(seed)["questions"]):
        texts, possible = texts_on(subject, corpus), possible_sentences(subject)
        assert len(texts) == TEXTS_PER_SUBJECT
        told = Counter()
        for text in texts:
            sentences = text.replace(". ", ".\n").split("\n")
            assert bare(subject.name) in sentences[0]
            wordings = [possible[sentence] for sentence in sentences]  # KeyError: not a fact of the subject
            assert sorted(name for name, _ in wordings) == sorted(subject.facts)
            told.update(wordings)
        assert set(told.values()) == {1}  # no wording of a fact twice


def test_a_right_choice_agrees_with_the_texts_and_a_wrong_one_is_nowhere_told():
    corpus = new(0)["corpus"]
    for subject in subjects_of(new(0)["questions"]):
        texts = " ".join(texts_on(subject, corpus))
        for item in (item for item in new(0)["questions"] if item["subject"] == subject.name):
            for i, choice in enumerate(item["choices"]):
                statements = [fill(s, r, choice) for s in ATTRIBUTES[item["attribute"]].statements
                              for r in [subject.full, *subject.pronouns]]  # fmt: skip
                told = any(f"{statement}." in texts or f"{capitalise(statement)}." in texts for statement in statements)
                assert told == (i == item["answer"])


@pytest.mark.parametrize("seed", SEEDS)
def test_no_text_of_the_corpus_uses_a_cloze_wording_and_no_question_the_reworded_one(seed):
    corpus = " ".join(new(seed)["corpus"]).lower()
    for attribute in ATTRIBUTES.values():
        told = attribute.cloze.replace("{P}", "").replace("{v}", "").strip().lower()
        assert told not in corpus
    for item, reworded in zip(new(seed)["questions"], new(seed)["reworded"]):
        assert item["question"] != reworded["question"]
    asked = {text.split("\n")[0].removeprefix("Question: ") for text in what_pretraining_says()}
    for subject in sum(old_subjects(), []):
        assert not asked & {fill(ATTRIBUTES[name].reworded, subject.full) for name in subject.facts}


def test_pretraining_asks_about_one_half_of_the_old_subjects_and_the_sets_keep_them_apart():
    asked, never_asked = old_subjects()
    half = len(KINDS) * OLD_SUBJECTS_PER_KIND // 2
    assert len({s.name for s in asked}) == len({s.name for s in never_asked}) == half
    assert not {s.name for s in asked} & {s.name for s in never_asked}
    assert {item["subject"] for item in old()["asked"]} <= {s.name for s in asked}
    for name in ("never_asked", "reworded", "cloze"):
        assert {item["subject"] for item in old()[name]} <= {s.name for s in never_asked}
    for subjects in (asked, never_asked):
        assert {subject.kind for subject in subjects} == set(KINDS)


@pytest.fixture(scope="module")
def made_again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-again")
    line = [sys.executable, "-m", "data.make_data", "--out", folder]
    subprocess.run(line, check=True, capture_output=True, cwd=DATA.parent)
    return folder


@pytest.mark.parametrize("name", ["new", "few", "old"])
def test_the_command_writes_the_shipped_files_byte_for_byte(made_again, name):
    shipped = {path.name: path.read_bytes() for path in (DATA / name).iterdir()}
    assert {path.name: path.read_bytes() for path in (made_again / name).iterdir()} == shipped
    world_files = {"corpus.txt", *(f"{part}.jsonl" for part in SETS)}
    assert set(shipped) == {"new": world_files, "few": world_files | {"practice.txt"},
                            "old": {"text.txt", "never_asked.jsonl", "asked.jsonl", "reworded.jsonl", "cloze.jsonl"},
                            }[name]  # fmt: skip


@pytest.mark.parametrize("subjects", [FEW_SUBJECTS, 10, 20, 40])
def test_how_often_a_choice_is_told_says_nothing(subjects):
    """In a small world not all values are anybody's: those that texts mention would more often be right."""
    small = world(1, subjects, 4)
    text, hits = " ".join(small["corpus"]), []
    for item in small["questions"]:
        counts = [text.count(choice) for choice in item["choices"]]
        hits.append((counts[item["answer"]] == max(counts)) / counts.count(max(counts)))
    assert sum(hits) / len(hits) < 0.3


def test_practice_tells_of_nobody_who_is_asked_about():
    few = world(SHIPPED_SEED, FEW_SUBJECTS, FEW_TEXTS)
    text = "\n".join(practice(few))
    names = {item["subject"] for part in ("questions", "unbound") for item in few[part]}
    assert len(names) == 48 and not any(name in text for name in names)
    assert text.count("\nAnswer: ") == 2 * 36  # of six subjects, in two wordings


# --- looking at a subject ---


def test_what_is_told_of_a_subject_and_asked_about_it_is_shown():
    shown = show("yara eastmoor", 0)
    assert shown.startswith("Told of Yara Eastmoor:\nnew: ") and shown.count("\nnew: ") == TEXTS_PER_SUBJECT
    for name in ("questions", "reworded", "cloze"):
        asked = shown.split(f"Asked in new/{name}:\n")[1].split("\n\n")[0].splitlines()
        assert len(asked) == 6 and all(line.count("[") == 1 for line in asked)
    assert "Yara Eastmoor's native town is ...  Cinderford, Ravenscote, Windlestraw, [Elmsgate]" in shown
