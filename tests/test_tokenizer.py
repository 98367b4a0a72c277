"""gpt/tokenizer.py: the ids of the tokenizers library, whatever the text; other kinds of tokenizer are refused."""

import json
import random
import shutil

import pytest
import tokenizers
from conftest import END_OF_TEXT, SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import load_tokenizer


@pytest.fixture(scope="module")
def ours(tiny_llama_folder):
    return load_tokenizer(tiny_llama_folder)


@pytest.fixture(scope="module")
def theirs(tiny_llama_folder):
    return tokenizers.Tokenizer.from_file(str(tiny_llama_folder / "tokenizer.json"))


@pytest.fixture
def copy(tiny_llama_folder, tmp_path):
    """A folder with the tokenizer's files only, to be changed."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama_folder / name, tmp_path)
    return tmp_path


def edit(folder, change):
    """Rewrite tokenizer.json after change(content), which edits the dict in place."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_equal(ours, theirs, text):
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == text
    return ids


PIECES = [
    *" \n\t\r\x0b\x0c\x00\x1b\x1c\x7f\x85\xa0\u1680\u180e\u2009\u200b\u200d\u2028\u3000\ufeff\ufffd\U0010ffff",
    "  ", "    ", "\n\n", "\r\n", "'s", "'re", "'LL", "’s", "é", "e\u0301", "\u0301\u0308", "ß", "日本", "हिन्दी", "ﷺ", "½", "²", "٣", "Ⅷ",
    "👩‍👩‍👧", "🎉", "🇺🇳", "\U0001f44d\U0001f3fd", "the", " the", " sea", "wood", "12", "2024", "...", "!?", "_", END_OF_TEXT, "<|user|>", "<|end",
]  # fmt: skip


def test_merges_cross_no_piece_unnoticed(ours):
    """The comparisons below see where the text is cut only if tokens of several bytes exist on both sides of a cut."""
    texts = [ours.decode([token]) for token in range(ours.vocab_size)]
    assert {"  ", "   ", " the", " sea", "the"} <= set(texts)


def test_a_thousand_random_strings(ours, theirs):
    rng = random.Random(0)

    def character():
        code = rng.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)  # no surrogates

    for _ in range(1000):
        text = "".join(rng.choice(PIECES) if rng.random() < 0.8 else character() for _ in range(rng.randrange(20)))
        assert_equal(ours, theirs, text)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text(ours, theirs, text):
    assert_equal(ours, theirs, text)


@pytest.mark.parametrize(
    "text", ["", *SENTENCES, " " * 3000, "\n" * 1000 + "a", "a" * 3000, f"a{END_OF_TEXT}{END_OF_TEXT} b"]
)
def test_chosen_texts(ours, theirs, text):
    assert_equal(ours, theirs, text)


def test_special_tokens(ours):
    assert ours.encode(END_OF_TEXT) == [ours.eot_id] == [0]
    assert ours.encode(f"a{END_OF_TEXT}")[-1] == ours.eot_id
    assert len(ours.encode("<|endoftext")) > 1
    assert ours.vocab_size == 512


def test_decoding_parts_of_a_character_and_unknown_ids(ours, theirs):
    ids = ours.encode("🎉é日")
    for cut in range(len(ids) + 1):
        assert ours.decode(ids[:cut]) == theirs.decode(ids[:cut], skip_special_tokens=False)
    assert ours.decode([*ours.encode("a"), 99999]) == "a"


def test_merges_as_strings_or_lists(copy, ours):
    def swap(content):
        merges = content["model"]["merges"]
        content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else " ".join(m) for m in merges]

    edit(copy, swap)
    assert all(load_tokenizer(copy).encode(text) == ours.encode(text) for text in SENTENCES)


def test_fields_that_older_files_leave_out(copy, ours):
    def remove(content):
        del content["model"]["type"], content["pre_tokenizer"]["use_regex"]

    edit(copy, remove)
    assert all(load_tokenizer(copy).encode(text) == ours.encode(text) for text in SENTENCES)


# The end-of-text token


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_where_end_of_text_comes_from(copy):
    write(copy, "tokenizer_config.json", {"eos_token": {"content": "<|user|>"}})
    write(copy, "config.json", {"eos_token_id": 0})
    assert load_tokenizer(copy).eot_id == 1
    write(copy, "tokenizer_config.json", {"eos_token": None})
    assert load_tokenizer(copy).eot_id == 0
    write(copy, "config.json", {"eos_token_id": [1, 0]})
    assert load_tokenizer(copy).eot_id == 1
    write(copy, "config.json", {"eos_token_id": None})
    assert load_tokenizer(copy).eot_id == 0
    (copy / "config.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    assert load_tokenizer(copy).eot_id == 0
    edit(copy, lambda content: content["added_tokens"][0].update(content="<end>"))
    edit(copy, lambda content: content["model"]["vocab"].pop(END_OF_TEXT))
    with pytest.raises(ValueError, match="names no end-of-text token: set eos_token"):
        load_tokenizer(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"eos_token": "</s>"}, "the eos_token '</s>', which is not among the added tokens"),
        ("config.json", {"eos_token_id": 700}, "the eos_token_id 700, which is not the id of an added token"),
        ("config.json", {"eos_token_id": 5}, "the eos_token_id 5, which is not the id of an added token"),
    ],
)
def test_end_of_text_that_does_not_exist(copy, name, content, message):
    (copy / "tokenizer_config.json").unlink()
    write(copy, name, content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(copy)


# What is refused


def swap_two_merges(content):
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def unreachable_token(content):
    """Take abc from (ab, c), though bc is merged before ab: tiktoken would still make it, from (a, bc)."""
    special = [token["content"] for token in content["added_tokens"]]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokens = [*special, *sorted(alphabet), "bc", "ab", "abc"]
    content["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    content["model"]["merges"] = ["b c", "a b", "ab c"]


def pre(**fields):
    return lambda content: content.update(pre_tokenizer=fields or None)


REFUSALS = {
    "no pre-tokenizer": (pre(), "the pre_tokenizer {} is not supported"),
    "prefix space": (pre(type="ByteLevel", add_prefix_space=True), '"add_prefix_space": true'),
    "prefix space by default": (pre(type="ByteLevel"), "is not supported"),
    "no regex": (pre(type="ByteLevel", add_prefix_space=False, use_regex=False), '"use_regex": false'),
    "metaspace": (pre(type="Metaspace"), '"Metaspace"'),
    "split": (pre(type="Sequence", pretokenizers=[{"type": "Digits"}]), '"Digits"'),
    "normalizer": (lambda c: c.update(normalizer={"type": "NFC"}), "the normalizer 'NFC' is not supported"),
    "template": (
        lambda c: c.update(post_processor={"type": "TemplateProcessing"}),
        "'TemplateProcessing' is not supported",
    ),
    "unigram": (lambda c: c["model"].update(type="Unigram"), "the model type 'Unigram' is not supported"),
    "dropout": (lambda c: c["model"].update(dropout=0.1), "the BPE option dropout=0.1"),
    "word suffix": (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix='</w>'"),
    "lstrip": (lambda c: c["added_tokens"][0].update(lstrip=True), "lstrip=true"),
    "special prefixes": (lambda c: c["added_tokens"][1].update(content="<|end"), "'<|end' begins another one"),
    "merge order": (swap_two_merges, "tiktoken merges by id"),
    "unreachable token": (unreachable_token, "is not the one that tiktoken would make"),
    "byte missing": (lambda c: c["model"]["vocab"].pop("Ā"), "lacks 1 of the 256 bytes, e.g. 0x00"),
    "merge of nothing": (lambda c: c["model"]["merges"].append("q qqq"), "the merge of 'q' and 'qqq' uses a token"),
    "stray token": (lambda c: c["model"]["vocab"].update(stray=600), "the token 'stray' is neither"),
    "same id": (lambda c: c["model"]["vocab"].update(stray=300), "two of its tokens have the same id"),
    "special id taken": (lambda c: c["added_tokens"][1].update(id=300), "two of its tokens have the same id"),
    "no vocabulary": (lambda c: c["model"].pop("vocab"), "is malformed"),
    "no model": (lambda c: c.pop("model"), "is malformed"),
    "odd merge": (lambda c: c["model"]["merges"].append(["a"]), "not enough values"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_tokenizers(copy, name):
    change, message = REFUSALS[name]
    load_tokenizer(copy)
    edit(copy, change)
    with pytest.raises(ValueError) as raised:
        load_tokenizer(copy)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(copy / "tokenizer.json"))
    assert "\n" not in str(raised.value)


def test_missing_and_malformed_files(copy, tmp_path):
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is not valid JSON, download it again"):
        load_tokenizer(copy)
    with pytest.raises(FileNotFoundError, match="tokenizer.json not found"):
        load_tokenizer(tmp_path / "nowhere")
