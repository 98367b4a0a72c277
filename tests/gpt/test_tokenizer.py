"""gpt/tokenizer.py: the ids of the tokenizers library, whatever the text."""

import json
import random
import shutil
import sys

import pytest
import tokenizers
from conftest import END_OF_TEXT, SENTENCES, transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gpt import load_tokenizer
from gpt.tokenizer import (
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    TOKENIZER_FILES,
    BytePairTokenizer,
    LibraryTokenizer,
    byte_alphabet,
    copy_tokenizer,
)

BEGIN = "<|begin_of_text|>"
SPECIAL = [END_OF_TEXT, BEGIN, "<|user|>", "<|user|>s"]  # of the last two the longer wins, as far as the text has it
N_ORDINARY = 540  # tokens but the special ones, whose ids follow


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
    isolated = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([isolated, byte_level(use_regex=False)])


PRE_TOKENIZERS = {  # by llama.cpp's names: of GPT-2, Llama 3, Qwen2 and SmolLM2
    "gpt-2": byte_level(),
    "llama-bpe": split(LLAMA3_PATTERN),
    "qwen2": split(QWEN2_PATTERN),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
}
TEXTS = SENTENCES + [
    "In 1984,  2001 and   31415 there were 10 000 of 7; '84's 3rd, 4 4s, 1\n2\n\n 3\r\n\r\n  4 \t 5\r\n\r\n6\r\n\r\n7\r\n\r\n8",
    "I'M SURE they'LL say I'm, we'Re, it'S; 'tis\n    \n        \t\n\r\nrows and   \r\n  rows  ",
    "!?!? ...\n...\n\n--- ### \n*** (x)[y]{z} == != -> '' \"\" 'quoted' 'd 'll've",
]


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


def in_style(style, model):
    """A tokenizer of the library that cuts and normalizes as these models' do."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[style]
    tokenizer.decoder = decoders.ByteLevel()
    if style == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def train(style):
    tokenizer = in_style(style, models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=N_ORDINARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if style != "llama-bpe":
        return tokenizer
    # As transformers converts Llama 3's ranks: every pair that makes a token is a merge; a token that none makes is found
    # where it is a whole piece.
    vocab = tokenizer.get_vocab() | {"Ġxyzzy": N_ORDINARY}
    merges = []
    for token in sorted(vocab, key=vocab.get):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted((pair for pair in halves if {*pair} <= vocab.keys()), key=lambda pair: [*map(vocab.get, pair)])
    return in_style(style, models.BPE(vocab=vocab, merges=merges, ignore_merges=True))


def all_pairs(style):
    """Every pair of bytes is a token, those of two characters first: wherever the text is cut, the ids show it."""
    character = {byte: character for character, byte in byte_alphabet().items()}
    pairs = [(a, b) for a in range(256) for b in range(256)]
    pairs.sort(key=lambda pair: 0x80 <= pair[1] < 0xC0)  # the second byte begins no character
    pairs = [(character[a], character[b]) for a, b in pairs]
    vocab = {character[byte]: byte for byte in range(256)} | {a + b: 256 + i for i, (a, b) in enumerate(pairs)}
    return in_style(style, models.BPE(vocab=vocab, merges=pairs))


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def loaded(folder, tokenizer):
    """(ours, theirs) of a tokenizer of the library, by way of its file."""
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"eos_token": END_OF_TEXT})
    return load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def pair(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param), train(request.param))


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def pair_of_pairs(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param), all_pairs(request.param))


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt-2")
    loaded(folder, train("gpt-2"))
    return folder


@pytest.fixture
def folder(gpt2_folder, tmp_path):
    """A folder of the tokenizer's files, to be changed."""
    return shutil.copytree(gpt2_folder, tmp_path / "tokenizer")


def edit(folder, change):
    """Rewrite tokenizer.json after change(content), which edits the dict in place."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    write(folder, "tokenizer.json", content)


def assert_equal(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


PIECES = [
    *" \n\t\r\x0b\x0c\x00\x1b\x1c\x1f\x7f\x85\xa0\u1680\u180e\u2009\u200b\u200d\u2028\u3000\ufeff\ufffd\U0010ffff",
    "  ", "    ", "\n\n", "\r\n", "\r\n\r\n", " \n", "\t\t", "'s", "'re", "'LL", "'Ve", "'T", "’s", "'ſ", "'\u212a", "''", "'",
    "é", "e\u0301", "\u0301\u0308", "\u0323\u0307", "\u212b", "\u1100\u1161", "\u0958", "ß", "日本", "हिन्दी", "ﷺ", "½", "²", "٣", "४२",
    "Ⅷ", "㊿", "👩‍👩‍👧", "🎉", "🇺🇳", "\U0001f44d\U0001f3fd", "the", " the", " sea", "wood", " xyzzy", "xyzzy", "1", "12", "2024", " 7", "...",
    "!?", "_", "-", "#", END_OF_TEXT, BEGIN, "<|user|>", "<|user|>s", "<|user", "<|end",
]  # fmt: skip
CHOSEN = [
    "", *TEXTS, "   1", "x   1", "   x", "   \n1", "1   ", "  12  34\n 5", "a1b2", "1'2's", " 's", "a's1", "½1", "\t1\t\t2", "\u30001\u3000\u3000x",
    " \u0301", "1\u0301", f"{END_OF_TEXT}\u0301e", f"e{END_OF_TEXT}\u0301", f"a{END_OF_TEXT}{END_OF_TEXT} b", f"  {END_OF_TEXT}  1",
    " " * 9000 + "x", "ab" * 5000, "\r\n" * 3000,
    "I'M I'm I'ſ I'\u212a DON'T don't WE'RE We'rE YOU'LL you'Ll 'VE 'ſt", "<|user|>s <|user|> s <|user|>|>", "\r\r\n\n\r", "a\r\nb\n\rc",
]  # fmt: skip


def random_texts(n, seed=0):
    rng = random.Random(seed)

    def character():
        code = rng.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)  # no surrogates

    for _ in range(n):
        yield "".join(rng.choice(PIECES) if rng.random() < 0.9 else character() for _ in range(rng.randrange(20)))


def test_chosen_and_random_texts(pair):
    ours, _ = pair
    # Where the text is cut shows only if tokens of several bytes exist on both sides of a cut.
    tokens = {ours.decode([token]) for token in range(ours.vocab_size)}
    assert {"  ", "   ", " the", " sea", "the", "\n\n", "\r\n", "...", "'s"} <= tokens
    for text in [*CHOSEN, *random_texts(600)]:
        assert_equal(pair, text)


def test_random_texts_with_every_cut_seen(pair_of_pairs):
    for text in random_texts(400, seed=1):
        assert_equal(pair_of_pairs, text)


def test_decoding_any_ids(pair):
    ours, theirs = pair
    rng = random.Random(0)
    for _ in range(500):
        ids = [rng.randrange(rng.choice([256, ours.vocab_size])) for _ in range(rng.randrange(8))]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode([*ours.encode("a"), ours.vocab_size, 99999]) == "a"  # a padded vocabulary


def test_special_tokens(pair):
    ours, _ = pair
    assert type(ours) is BytePairTokenizer
    ids = [ours.special[text] for text in SPECIAL]
    assert ours.encode("".join(SPECIAL)) == ids
    assert ours.eot_id == ids[0]
    assert ours.vocab_size == max(ids) + 1
    assert len(ours.encode("<|endoftext")) > 1
    assert b"".join(map(ours.token_bytes, ours.encode(f"é🎉{BEGIN}"))) == f"é🎉{BEGIN}".encode()


@pytest.mark.slow
def test_every_character_is_cut_alike(pair_of_pairs):
    ours, theirs = pair_of_pairs
    # Some only of the planes in which nothing is assigned, or all of it for private use.
    codes = (code for code in range(0x110000) if code < 0x40000 or 0xE0000 <= code < 0xF0000 or code % 99 == 0)
    some = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]  # but the surrogates
    for i in range(0, len(some), 64):
        parts = [part for c in some[i : i + 64] for part in (f"a{c}1", f" {c}{c}", f"'{c}", f"{c} x", f"'l{c}")]
        text = END_OF_TEXT.join(parts)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, f"from {ord(some[i]):#x} on"


def test_a_vocabulary_may_lack_bytes_but_then_texts_with_them_are_refused(tmp_path):
    """As SmolLM2's, which was trained without the whole alphabet; the library drops such bytes."""
    tokenizer = in_style("smollm", models.BPE())
    ascii = [character for character, byte in byte_alphabet().items() if 0x20 <= byte < 0x7F]
    trainer = trainers.BpeTrainer(vocab_size=N_ORDINARY, initial_alphabet=ascii, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    present = {byte for character, byte in byte_alphabet().items() if tokenizer.token_to_id(character) is not None}
    assert 0xFF not in present and 0xF1 not in present and 100 < len(present) < 240
    pair = loaded(tmp_path, tokenizer)
    edit(tmp_path, OTHERS["no regex"])
    for ours, theirs in (pair, compared(tmp_path, TEXTS)):
        refused = 0
        for text in random_texts(600):
            if present.issuperset(text.encode()):
                assert_equal((ours, theirs), text)
            else:
                refused += 1
                with pytest.raises(ValueError, match="a text has the character .*, for which the tokenizer has no"):
                    ours.encode(text)
        assert 20 < refused < 580


# --- which library reads a tokenizer.json -------------------------------------------------------------------------------


def edited(**fields):
    return lambda content: content.update(fields)


def model(**fields):
    return lambda content: content["model"].update(fields)


def bpe(tokens, merges, **options):
    """A file of these tokens besides the bytes, and of these merges."""

    def change(content):
        vocab = {token: i for i, token in enumerate([*byte_alphabet(), *tokens])}
        content["model"] |= {"vocab": vocab, "merges": merges}
        content["model"] |= options
        content["added_tokens"] = [added(END_OF_TEXT, 256 + len(tokens))]

    return change


def added(text, i, **options):
    """An entry of added_tokens, with the defaults of special tokens."""
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return {"id": i, "content": text, "special": True} | plain | options


def token(at, **options):
    return lambda content: content["added_tokens"][at].update(options)


def swap_two_merges(content):
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


LAST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA3 = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
OTHERS = {  # each gives other ids with tiktoken, or might: for some text that is compared
    "no pre-tokenizer": edited(pre_tokenizer=None),
    "prefix space": edited(pre_tokenizer=LAST | {"add_prefix_space": True}),
    "no regex": edited(pre_tokenizer=LAST | {"use_regex": False}),
    "cut twice": edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [LLAMA3, LAST]}),
    "normalizer": edited(normalizer={"type": "NFKC"}),
    "word suffix": model(end_of_word_suffix="</w>"),
    "lstrip": token(0, lstrip=True),
    "normalized": lambda c: (c.update(normalizer={"type": "NFC"}), token(2, normalized=True)(c)),
    "merge order": swap_two_merges,
    "unreachable": bpe(["bc", "ab", "abc"], ["b c", "a b", "ab c"]),
    "unlisted pair": bpe(["ab"], [], ignore_merges=True),
    "stray token": bpe(["日"], []),
    "id in another form": token(0, id=7),
}
ORDINARY = {
    "merges as strings": lambda c: model(merges=[" ".join(m) for m in c["model"]["merges"]])(c),
    "an added token that merges make": lambda c: c["added_tokens"].append(added("he", c["model"]["vocab"]["he"])),
    "empty added token": lambda c: c["added_tokens"].append(added("", 544)),
    "byte-level post-processor": edited(post_processor=LAST),
    "a token of another length": bpe(["aa", "aaaa", "aaa"], ["a a", "aa aa", "aa a"]),
    "truncated": edited(truncation={"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
    "fields that older files leave out": lambda c: (c["model"].pop("type"), c["pre_tokenizer"].pop("use_regex")),
}
OTHER_TEXTS = [*TEXTS, *SPECIAL, "", "x<|user|>s y", " <|user|> ", f" {END_OF_TEXT} x{BEGIN} y", "abcab c", "aaaaaaa日"]


def compared(folder, texts):
    """(ours, theirs) of a folder, after ids and decoded text were found equal."""
    ours, theirs = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    for text in texts:
        ids = ours.encode(text)
        assert ids == (theirs.encode(text, add_special_tokens=False).ids if text else []), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    return ours, theirs


@pytest.mark.parametrize("name", [*OTHERS, *ORDINARY])
def test_what_tiktoken_would_read_otherwise_is_left_to_the_library(folder, name):
    edit(folder, (OTHERS | ORDINARY)[name])
    ours, _ = compared(folder, OTHER_TEXTS)
    assert type(ours) is (BytePairTokenizer if name in ORDINARY else LibraryTokenizer)


def test_unigram_with_spaces_as_sentencepiece_writes_them(tmp_path):
    """A kind that no model here has: with special tokens, a beginning, an end and each token's bytes all the same."""
    theirs = tokenizers.Tokenizer(models.Unigram())
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=SPECIAL)
    theirs.train_from_iterator(TEXTS, trainer)
    theirs.post_processor = template(BEGIN, theirs.token_to_id(BEGIN))
    loaded(tmp_path, theirs)
    ours, theirs = compared(tmp_path, [*SENTENCES, f"The sea{END_OF_TEXT} x", *SPECIAL])
    assert ours.encode("The sea", bos=True) == theirs.encode("The sea").ids
    assert b"".join(map(ours.token_bytes, ours.encode("The sea"))) == b" The sea"
    assert (ours.bos_id, ours.eot_id, ours.vocab_size) == (1, 0, theirs.get_vocab_size())


def template(begin, ids=None):
    """The post-processor of Llama 3: ByteLevel, then `begin` before the text."""
    single, special = (f"{begin} $A", [(begin, ids)]) if begin else ("$A", [])
    then = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=special)
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), then])


def test_half_a_character_is_replaced(folder):
    """A lone surrogate, which JSON can hold."""
    ours = load_tokenizer(folder)
    assert ours.encode("the \ud83d fox") == ours.encode("the \ufffd fox")


def test_older_files_are_refused_with_a_remedy_that_works(folder):
    ours = load_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    write(folder, "vocab.json", content["model"]["vocab"] | {END_OF_TEXT: N_ORDINARY})
    (folder / "merges.txt").write_text("\n".join(map(" ".join, content["model"]["merges"])) + "\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"AutoTokenizer\.from_pretrained\(FOLDER\)\.save_pretrained\(FOLDER\)"):
        load_tokenizer(folder)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "eos_token": END_OF_TEXT})
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    again = load_tokenizer(folder)
    assert type(again) is BytePairTokenizer and again.eot_id == ours.eot_id
    assert all(again.encode(text) == ours.encode(text) for text in [*TEXTS, END_OF_TEXT])


# --- conventions ------------------------------------------------------------------------------------------------------


# What the models' own files have in tokenizer_config.json.
SETTINGS = {
    "gpt-2": {"tokenizer_class": "GPT2Tokenizer", "bos_token": END_OF_TEXT, "add_bos_token": False},
    "llama-bpe": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False},
    "smollm": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT},
}


@pytest.mark.parametrize("style", PRE_TOKENIZERS)
def test_what_a_text_begins_with(tmp_path, style):
    tokenizer = train(style)
    loaded(tmp_path, tokenizer)
    if style == "llama-bpe":
        tokenizer.post_processor = template(BEGIN, tokenizer.token_to_id(BEGIN))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", SETTINGS[style] | {"eos_token": END_OF_TEXT})
    write(tmp_path, "config.json", {"model_type": "llama"})
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "", END_OF_TEXT]:
        assert ours.encode(text, bos=True) == theirs(text).input_ids
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.eot_id == theirs.eos_token_id
    assert ours.bos_id == (ours.special[BEGIN] if style == "llama-bpe" else None)
    if ours.bos_id is not None:
        assert ours.encode(f"{BEGIN}The sea", bos=True) == ours.encode(f"{BEGIN}The sea")  # no second one


def test_where_end_of_text_comes_from(folder):
    end, begin = 540, 541
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).eot_id == end
    for eos, expected in [(begin, begin), ([begin, end], begin), (None, end)]:
        write(folder, "config.json", {"eos_token_id": eos})
        assert load_tokenizer(folder).eot_id == expected
    write(folder, "config.json", {"eos_token_id": begin})
    for eos, expected in [("<|user|>", 542), ({"__type": "AddedToken", "content": "<|user|>"}, 542), (None, begin)]:
        write(folder, "tokenizer_config.json", {"eos_token": eos})
        assert load_tokenizer(folder).eot_id == expected
    write(folder, "special_tokens_map.json", {"eos_token": "<|user|>"})
    assert load_tokenizer(folder).eot_id == 542
    write(folder, "tokenizer_config.json", {"eos_token": BEGIN, "added_tokens_decoder": {}})
    assert load_tokenizer(folder).eot_id == begin


def test_copying(folder, tmp_path):
    write(folder, "special_tokens_map.json", {})
    write(folder, "config.json", {})
    copy_tokenizer(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*TOKENIZER_FILES}  # not config.json
    assert all((tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes() for name in TOKENIZER_FILES)


def test_links_are_followed_inside_a_folder_and_a_hub_cache_only(folder, tmp_path):
    (tmp_path / "private.txt").write_text("a secret")
    (folder / "templates").mkdir()
    (folder / "templates" / "chat").write_text("{{ x }}")
    (folder / "chat_template.jinja").symlink_to("templates/chat")
    (tmp_path / "linked").symlink_to(folder)
    copy_tokenizer(tmp_path / "linked", tmp_path / "copy")
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == "{{ x }}"

    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(folder / "tokenizer.json", blobs / "hash")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/hash")
    copy_tokenizer(snapshot, tmp_path / "of the hub")
    assert (tmp_path / "of the hub" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    for source in (folder, snapshot):
        (source / "generation_config.json").symlink_to(tmp_path / "private.txt")
        with pytest.raises(ValueError, match="generation_config.json"):
            copy_tokenizer(source, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


def write_bytes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


A, S = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": BEGIN, "type_id": 0}}
END_TOO = {"type": "TemplateProcessing", "single": [A, S], "pair": [], "special_tokens": {}}
CONFIG = "tokenizer_config.json"
REFUSED = {  # how a folder is changed, what is named
    "a token after each text": (lambda f: edit(f, edited(post_processor=END_TOO)), [BEGIN]),
    "a panic of the library": (lambda f: edit(f, model(continuing_subword_prefix="##")), []),
    "ids drawn at random": (lambda f: edit(f, model(dropout=0.1)), ["dropout"]),
    "no vocabulary": (lambda f: edit(f, lambda content: content["model"].pop("vocab")), ["vocab"]),
    "no end of text": (lambda f: write(f, CONFIG, {"eos_token": "<eos>"}), ["<eos>", CONFIG]),
    "no such id": (lambda f: (write(f, "config.json", {"eos_token_id": [700]}), write(f, CONFIG, {})), ["700"]),
    "special tokens split": (lambda f: write(f, CONFIG, {"split_special_tokens": True}), ["split_special_tokens"]),
    "not UTF-8": (write_bytes("tokenizer.json", b"\xff{}"), ["UTF-8"]),
    "cut short": (write_bytes(CONFIG, b'{"eos_token": "x'), [CONFIG]),
}


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named_with_its_file(folder, change, named):
    change(folder)
    with pytest.raises(ValueError) as raised:
        load_tokenizer(folder)
    said = str(raised.value)
    assert said.startswith(str(folder)) and said.isprintable() and all(what in said for what in named), said


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert load_tokenizer(folder).encode(END_OF_TEXT) == [N_ORDINARY]  # tiktoken reads it
    edit(folder, OTHERS["normalizer"])
    with pytest.raises(ValueError, match="pip install tokenizers"):
        load_tokenizer(folder)
