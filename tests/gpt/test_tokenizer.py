"""gpt/tokenizer.py: the ids of the tokenizers library and of sentencepiece, whatever the text."""

import json
import random
import re
import shutil
import sys
import unicodedata

import pytest
import sentencepiece
import tokenizers
from conftest import END_OF_TEXT, SENTENCES, transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gpt import load_tokenizer
from gpt.tokenizer import (
    GPT2_PATTERN,
    SETTINGS_FILES,
    SPLIT_PATTERNS,
    TOKENIZER_FILES,
    BytePairTokenizer,
    LibraryTokenizer,
    byte_alphabet,
    copy_tokenizer,
    ranks_of,
)

BEGIN = "<|begin_of_text|>"
SPECIAL = [END_OF_TEXT, BEGIN, "<|user|>", "<|user|>s"]  # of the last two the longer wins, as far as the text has it
LLAMA3, QWEN2 = SPLIT_PATTERNS
N_ORDINARY = 540  # tokens but the special ones, whose ids follow


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
    isolated = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([isolated, byte_level(use_regex=False)])


PRE_TOKENIZERS = {
    "gpt2": byte_level(),
    "llama3": split(LLAMA3),
    "qwen2": split(QWEN2),
    "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
}
STYLES = [*PRE_TOKENIZERS]
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
    if style != "llama3":
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


@pytest.fixture(scope="module", params=STYLES)
def pair(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param), train(request.param))


@pytest.fixture(scope="module", params=STYLES)
def pair_of_pairs(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param), all_pairs(request.param))


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    loaded(folder, train("gpt2"))
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
    decoded = ours.decode(ids)
    assert decoded == theirs.decode(ids, skip_special_tokens=False)
    assert decoded == (text if not getattr(ours, "nfc", False) else nfc_between_special_tokens(text))


def nfc_between_special_tokens(text):
    longest_first = map(re.escape, sorted(SPECIAL, key=len, reverse=True))
    parts = re.split(f"({'|'.join(longest_first)})", text)
    return "".join(part if part in SPECIAL else unicodedata.normalize("NFC", part) for part in parts)


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
    for text in [*CHOSEN, *random_texts(1500)]:
        assert_equal(pair, text)


def test_random_texts_with_every_cut_seen(pair_of_pairs):
    for text in random_texts(700, seed=1):
        assert_equal(pair_of_pairs, text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text(pair, text):
    assert_equal(pair, text)


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


NEWER_THAN_UNICODE_9 = """5c8-5c9 7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1af0 1df6-1dfa a82c 10d24-10d27
    10d69-10d6d 10eab-10eac 10ecb-10ecf 10ef0-10efb 10efd-10eff 10f46-10f50 10f82-10f85 11070 1133b 113ce-113d0 1145e
    11839-1183a 1193d-1193e 11943 119e0 11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 1612f 16ff0-16ff1
    1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef
    1e6e3 1e6e6 1e6ee-1e6ef 1e6f5 105c9 105e4 11383 11385 1138e 11391 113c5 113c7-113c8 11938 16121-16128 16d68-16d6a"""


def code_points(ranges):
    ends = [[int(end, 16) for end in part.split("-")] for part in ranges.split()]
    return {code for end in ends for code in range(end[0], end[-1] + 1)}


def every_character():
    return (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)  # but the surrogates


@pytest.mark.slow
def test_every_character_is_cut_alike(pair_of_pairs):
    ours, theirs = pair_of_pairs
    # Some only of the planes in which nothing is assigned, or all of it for private use.
    some = [c for c in every_character() if ord(c) < 0x40000 or 0xE0000 <= ord(c) < 0xF0000 or ord(c) % 99 == 0]
    for i in range(0, len(some), 64):
        parts = [part for c in some[i : i + 64] for part in (f"a{c}1", f" {c}{c}", f"'{c}", f"{c} x", f"'l{c}")]
        text = END_OF_TEXT.join(parts)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, f"from {ord(some[i]):#x} on"


@pytest.mark.slow
def test_every_character_is_normalized_alike():
    """Python's NFC, but for the order of marks and the compositions that the library's Unicode 9 does not know."""
    theirs = normalizers.NFC()
    different = set()
    for c in every_character():
        for text in (c, f"a{c}\u0334", f"a\u0345{c}\u0334\u0301", unicodedata.normalize("NFD", c)):
            if theirs.normalize_str(text) != unicodedata.normalize("NFC", text):
                different.add(ord(c))
    assert different <= code_points(NEWER_THAN_UNICODE_9)


# --- merges and ranks -------------------------------------------------------------------------------------------------


def random_bpe(rng):
    """(vocab, merges, letters) of a few tokens over two or three letters: mostly in order, sometimes not at all."""
    letters = rng.choice(["ab", "ab", "abc"])
    tokens, merges = [*letters], []
    for _ in range(rng.randrange(1, 9)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) <= 8:
            merges.append((left, right))
            tokens += [left + right] * (left + right not in tokens)
    new = tokens[len(letters) :]
    pairs = [
        (token[:i], token[i:]) for token in new for i in range(1, len(token)) if {token[:i], token[i:]} <= {*tokens}
    ]
    kind = rng.random()
    if kind < 0.4:
        merges = pairs  # all, as in Llama 3's file
    elif kind < 0.7:  # some, anywhere; perhaps a second time
        for pair in rng.sample(pairs, rng.randrange(len(pairs) + 1)):
            merges.insert(rng.randrange(len(merges) + 1), pair)
    if merges and rng.random() < 0.2:
        merges.pop(rng.randrange(len(merges)))
    if rng.random() < 0.3:
        rng.shuffle(new)
    if rng.random() < 0.15:  # a token that no merge makes
        new.append("".join(rng.choices(letters, k=7)))
    step = rng.choice([1, 1, 100_000])  # ids may leave gaps
    first = [*byte_alphabet()]
    vocab = {character: i for i, character in enumerate(first)}
    return vocab | {token: 256 + i * step for i, token in enumerate(dict.fromkeys(new))}, merges, letters


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_whatever_merges_tiktoken_takes_over_give_the_same_ids(ignore_merges):
    rng = random.Random(0)
    accepted = several = unmade = refused = 0
    for _ in range(250):
        vocab, merges, letters = random_bpe(rng)
        ranks = ranks_of(vocab, merges, {}, ignore_merges)
        if ranks is None:
            refused += 1
            continue
        accepted += 1
        several += len({left + right for left, right in merges}) < len({*merges})
        unmade += not {token for token in vocab if len(token) > 1} <= {left + right for left, right in merges}
        ours = BytePairTokenizer(GPT2_PATTERN, ranks, False, {})
        theirs = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
        theirs.pre_tokenizer = byte_level()
        for _ in range(15):
            text = "".join(rng.choices(letters, k=rng.randrange(1, 25)))
            assert ours.encode(text) == theirs.encode(text).ids, (text, vocab, merges)
    assert min(accepted, several, refused) > 15
    assert (unmade > 0) == ignore_merges


@pytest.mark.parametrize("unk_token", [None, END_OF_TEXT])
def test_a_vocabulary_may_lack_bytes_but_then_texts_with_them_are_refused(tmp_path, unk_token):
    """As SmolLM2's, which was trained without the whole alphabet; the library drops such bytes, or puts unk_token there."""
    tokenizer = in_style("smollm2", models.BPE(unk_token=unk_token))
    ascii = [character for character, byte in byte_alphabet().items() if 0x20 <= byte < 0x7F]
    trainer = trainers.BpeTrainer(
        vocab_size=N_ORDINARY, show_progress=False, initial_alphabet=ascii, special_tokens=[END_OF_TEXT]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    present = {byte for character, byte in byte_alphabet().items() if tokenizer.token_to_id(character) is not None}
    assert 0xFF not in present and 0xF1 not in present and 100 < len(present) < 240
    ours, theirs = loaded(tmp_path, tokenizer)
    refused = 0
    for text in [*TEXTS, "\U00042000", *random_texts(1500)]:
        if present.issuperset(text.encode()):
            assert_equal((ours, theirs), text)
        else:
            refused += 1
            with pytest.raises(ValueError, match="a text has the character .*, for which the tokenizer has no token"):
                ours.encode(text)
    assert 50 < refused < 1450


# --- every other tokenizer.json, through the library --------------------------------------------------------------------


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


def pre(*steps):
    return edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps]})


def cut(behavior="Isolated", pattern=None, invert=False):
    return {"type": "Split", "pattern": pattern or {"Regex": LLAMA3}, "behavior": behavior, "invert": invert}


def token(at, **options):
    return lambda content: content["added_tokens"][at].update(options)


def swap_two_merges(content):
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


LAST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
UNCUT = LAST | {"use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
NEW = added("<new>", 544)
OTHERS = {  # each gives other ids with tiktoken, or might: for some text that is compared
    "no pre-tokenizer": edited(pre_tokenizer=None),
    "prefix space": edited(pre_tokenizer=LAST | {"add_prefix_space": True}),
    "no regex": edited(pre_tokenizer=UNCUT),
    "other pattern": pre(cut(pattern={"Regex": "|x"}), UNCUT),
    "cut twice": pre(cut(), LAST),
    "normalizer": edited(normalizer={"type": "NFKC"}),
    "normalizers": edited(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
    "word suffix": model(end_of_word_suffix="</w>"),
    "lstrip": token(0, lstrip=True),
    "single word": token(2, single_word=True),
    "normalized": lambda c: (c.update(normalizer={"type": "NFC"}), token(2, normalized=True)(c)),
    "merge order": swap_two_merges,
    "unreachable": bpe(["bc", "ab", "abc"], ["b c", "a b", "ab c"]),
    "unlisted pair": bpe(["ab"], [], ignore_merges=True),
    "stray token": bpe(["日"], []),
    "added with a gap": lambda c: c["added_tokens"].append(NEW | {"id": 550}),
    "id in another form": token(0, id=7),
    "truncated": edited(truncation={"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
}
OTHER_TEXTS = [*TEXTS, "<new>", "x<|user|>s y", " <|user|> ", f" {END_OF_TEXT} x{BEGIN} y", "abcab c", "日", *SPECIAL]


def compared(folder, texts):
    """(ours, theirs) of a folder, after ids and decoded text were found equal."""
    ours, theirs = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    for text in texts:
        ids = ours.encode(text)
        assert ids == (theirs.encode(text, add_special_tokens=False).ids if text else []), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    return ours, theirs


@pytest.mark.parametrize("name", OTHERS)
def test_what_tiktoken_would_read_otherwise_is_left_to_the_library(folder, name):
    edit(folder, OTHERS[name])
    ours, _ = compared(folder, OTHER_TEXTS)
    assert type(ours) is (BytePairTokenizer if name == "truncated" else LibraryTokenizer)


def test_a_text_is_never_truncated(folder):
    edit(folder, lambda c: (OTHERS["truncated"](c), OTHERS["prefix space"](c)))
    assert len(load_tokenizer(folder).encode(TEXTS[0])) > 10


def test_the_library_leaves_out_no_character_either(folder):
    def change(content):
        OTHERS["no regex"](content)
        vocab, merges = content["model"]["vocab"], content["model"]["merges"]
        content["model"]["merges"] = [m for m in merges if "q" not in "".join(m)]
        content["model"]["vocab"] = {t: i for t, i in vocab.items() if "q" not in t}

    edit(folder, change)
    assert load_tokenizer(folder).encode("the")
    with pytest.raises(ValueError, match="the character 'q' .*, for which the tokenizer has no token"):
        load_tokenizer(folder).encode("the queue")


def swap_kinds_of_merges(content):
    merges = content["model"]["merges"]
    content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else " ".join(m) for m in merges]


ORDINARY = {
    "nothing changed": lambda c: None,
    "merges as strings": swap_kinds_of_merges,
    "another added": lambda c: c["added_tokens"].append(NEW),
    "an added token that merges make": lambda c: c["added_tokens"].append(added("he", c["model"]["vocab"]["he"])),
    "empty added token": lambda c: c["added_tokens"].append(NEW | {"content": ""}),
    "byte-level post-processor": edited(post_processor=LAST),
    "a pair twice": lambda c: c["model"]["merges"].append(c["model"]["merges"][-1]),
    "a token of another length": bpe(["aa", "aaaa", "aaa"], ["a a", "aa aa", "aa a"]),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_looks_odd_but_is_in_order_is_read_by_tiktoken(folder, name):
    edit(folder, ORDINARY[name])
    ours, theirs = compared(folder, [*OTHER_TEXTS, "e\u0301", "aaaaaaa"])
    assert type(ours) is BytePairTokenizer
    assert ours.encode("The sea", bos=True) == theirs.encode("The sea").ids


def test_fields_that_older_files_leave_out(folder):
    ours = load_tokenizer(folder)

    def remove(content):
        del content["model"]["type"], content["pre_tokenizer"]["use_regex"], content["normalizer"]

    edit(folder, remove)
    assert all(load_tokenizer(folder).encode(text) == ours.encode(text) for text in TEXTS)


def test_unigram_and_word_pieces(tmp_path):
    """Kinds that no model here has: as the library reads them, with special tokens, a beginning and an end all the same."""
    kinds = (models.Unigram(), trainers.UnigramTrainer), (models.WordPiece(), trainers.WordPieceTrainer)
    for model, trainer in kinds:
        theirs = tokenizers.Tokenizer(model)
        theirs.pre_tokenizer = pre_tokenizers.Metaspace()
        theirs.train_from_iterator(TEXTS, trainer(vocab_size=300, show_progress=False, special_tokens=SPECIAL))
        theirs.post_processor = template(BEGIN, theirs.token_to_id(BEGIN))
        loaded(tmp_path, theirs)
        ours, theirs = compared(tmp_path, without_special(TEXTS) + [f"The sea{END_OF_TEXT} x", *SPECIAL])
        assert ours.encode("The sea", bos=True) == theirs.encode("The sea").ids
        assert (ours.bos_id, ours.eot_id) == (1, 0)
        assert ours.vocab_size == theirs.get_vocab_size()


def template(begin, ids=None):
    """The post-processor of Llama 3: ByteLevel, then `begin` before the text."""
    single, special = (f"{begin} $A", [(begin, ids)]) if begin else ("$A", [])
    then = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=special)
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), then])


def without_special(texts):
    return [text for text in texts if "<" not in text]


def assert_refused(folder, name, *named):
    """In one sentence that begins with the file's name and names the rest."""
    with pytest.raises(ValueError) as raised:
        load_tokenizer(folder)
    said = str(raised.value)
    assert said.startswith(str(folder / name)) and "\n" not in said
    assert all(what in said for what in named), said


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def train_sentencepiece(folder, **options):
    """tokenizer.model, as Llama 2's unless told otherwise."""
    defaults = dict(
        vocab_size=420, model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS * 5 for line in text.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        **(defaults | options),
    )
    (folder / "tokenizer.vocab").unlink()
    write(folder, "tokenizer_config.json", LLAMA2)
    write(folder, "config.json", {"model_type": "llama"})
    return folder


LLAMA2 = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
    "legacy": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_sentencepiece(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture
def llama2(trained_sentencepiece, tmp_path):
    """A folder with tokenizer.model, to be changed."""
    return shutil.copytree(trained_sentencepiece, tmp_path / "llama2")


def processor_of(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece_without_special_tokens(tmp_path, model_type):
    folder = train_sentencepiece(tmp_path, model_type=model_type)
    ours, theirs = load_tokenizer(folder), processor_of(folder)
    texts = without_special(
        [*CHOSEN, *random_texts(1000), " x", "  x", "▁", "▁x ▁", "\n", "\n\nx", " \n", "\n ", "x\n"]
    )
    assert len(texts) > 300
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == text.replace("▁", " ")
    assert ours.vocab_size == theirs.vocab_size() == 420
    assert (ours.bos_id, ours.eot_id) == (1, 2)


@pytest.mark.parametrize(
    "options",
    [
        dict(byte_fallback=False),
        dict(add_dummy_prefix=False),
        dict(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True),
    ],
)
def test_sentencepiece_of_other_kinds(tmp_path, options):
    folder = train_sentencepiece(tmp_path, **options)
    ours, theirs = load_tokenizer(folder), processor_of(folder)
    for text in without_special([*CHOSEN, *random_texts(300), " x", "  x y  ", "ﬁne", "\n"]):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_sentencepiece_with_special_tokens_as_transformers_has_it(llama2, legacy):
    """But a text that begins with a space, which transformers puts none before: sentencepiece does."""
    write(
        llama2,
        "tokenizer_config.json",
        LLAMA2 | {"legacy": legacy} if legacy is not None else without(LLAMA2, "legacy"),
    )
    ours, theirs = load_tokenizer(llama2), transformers.AutoTokenizer.from_pretrained(llama2)
    rng = random.Random(0)
    pieces = [*without_special(PIECES), "▁", "The", "Peter Piper picked", " pickled  peppers", "x", "1", "\n"]
    first = [piece for piece in pieces if piece[0] not in " ▁"]
    compared = 0
    for _ in range(600):
        parts = ["".join(rng.choices(pieces, k=rng.randrange(5))) for _ in range(rng.randrange(1, 5))]
        parts = [rng.choice(first) + part if i == 0 or legacy else part for i, part in enumerate(parts)]
        text = "".join(part + rng.choice(["</s>", "<s>", "<unk>", "<s></s>"]) for part in parts)
        text = text.removesuffix("</s>")
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids)
        compared += len(parts) > 1
    assert compared > 300
    assert ours.encode("</s>x") == [2, *(ours.encode("x") if legacy else processor_of(llama2).encode("\nx")[2:])]


def without(settings, *names):
    return {name: value for name, value in settings.items() if name not in names}


def metaspace(**options):
    return {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", **options}}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
SPACES = {  # what files of this kind do with spaces
    "Mistral v0.3": metaspace(prepend_scheme="first", split=False),
    "always": metaspace(prepend_scheme="always", split=False),
    "never": metaspace(prepend_scheme="never", split=False),
    "in words": metaspace(prepend_scheme="first", split=True),
    "older": metaspace(add_prefix_space=True),
    "older and newer": metaspace(add_prefix_space=False, prepend_scheme="never"),
    "Llama 2": {"normalizer": PREPEND, "pre_tokenizer": None},
    "no space in front": {"normalizer": REPLACE, "pre_tokenizer": None},
    "no space in front, in a sequence": {
        "normalizer": {"type": "Sequence", "normalizers": [REPLACE]},
        "pre_tokenizer": None,
    },
}


@pytest.fixture(scope="module")
def converted_sentencepiece(tmp_path_factory, trained_sentencepiece):
    """Only a tokenizer.json, with byte_fallback, as transformers 5 saves Llama 2."""
    folder = tmp_path_factory.mktemp("converted")
    transformers.AutoTokenizer.from_pretrained(trained_sentencepiece).save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"]
    return folder


@pytest.fixture
def converted(converted_sentencepiece, tmp_path):
    return shutil.copytree(converted_sentencepiece, tmp_path / "converted")


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("model_beside", [False, True])
def test_sentencepiece_in_tokenizer_json(converted, trained_sentencepiece, name, model_beside):
    edit(converted, lambda content: content.update(SPACES[name]))
    if model_beside:  # another one: the json is what counts
        shutil.copy(trained_sentencepiece / "tokenizer.model", converted)
        edit(converted, lambda content: content["model"]["merges"].pop())
    rng = random.Random(0)
    pieces = [*PIECES, "</s>", "<s>", "</s>\n", "</s> x", "<unk>", "<0x0A>", "▁", " hello", "The", " pickled  peppers"]
    texts = [*CHOSEN, *pieces, " ", "  ", *("".join(rng.choices(pieces, k=rng.randrange(1, 7))) for _ in range(250))]
    ours, theirs = compared(converted, texts)
    for text in filter(None, texts):
        assert ours.encode(text, bos=True)[not text.startswith("<s>") :] == theirs.encode(text).ids[1:]
        spelled = b"".join(map(ours.token_bytes, ours.encode(text))).decode()
        assert spelled.replace(" ", "") == text.replace("▁", "").replace(" ", "")
    assert type(ours) is LibraryTokenizer
    assert (ours.bos_id, ours.eot_id, ours.vocab_size) == (1, 2, 420)
    if name == "Llama 2" and not model_beside:
        processor = processor_of(trained_sentencepiece)
        assert all(ours.encode(text) == processor.encode(text) for text in without_special(texts))


def test_tokens_added_to_sentencepiece(llama2):
    """In tokenizer_config.json, beyond the model's vocabulary or as new names of its control tokens."""
    more = {str(i): added(text, i) for i, text in [(420, "<|im_start|>"), (421, "<p>")]}
    write(llama2, "tokenizer_config.json", LLAMA2 | {"added_tokens_decoder": more})
    ours, theirs = load_tokenizer(llama2), transformers.AutoTokenizer.from_pretrained(llama2)
    assert ours.vocab_size == 422
    for text in ["a<|im_start|>b<p> c", "<p>", "<p><p>  a<s>b"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text))
    assert ours.decode([500, *ours.encode("a"), -1]) == "a"
    write(llama2, "tokenizer_config.json", LLAMA2 | {"added_tokens_decoder": more | {"422": added("", 422)}})
    assert load_tokenizer(llama2).special == ours.special


def test_half_a_character_is_replaced(llama2, gpt2_folder):
    """A lone surrogate, which JSON can hold."""
    for folder in (llama2, gpt2_folder):
        ours = load_tokenizer(folder)
        assert ours.encode("the \ud83d fox") == ours.encode("the \ufffd fox")


def test_older_files_of_added_tokens(llama2):
    """As in transformers: they count where tokenizer_config.json lists none itself."""
    write(llama2, "added_tokens.json", {"<|im_start|>": 420, "<|im_end|>": 421})
    write(llama2, "tokenizer_config.json", without(LLAMA2, "eos_token"))
    write(llama2, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}})
    ours, theirs = load_tokenizer(llama2), transformers.AutoTokenizer.from_pretrained(llama2)
    for text in ["<|im_start|>user\nThe sea<|im_end|>\n<|im_start|>", "x <|im_end|> y"]:
        assert ours.encode(text, bos=True) == theirs(text).input_ids
    assert ours.eot_id == theirs.eos_token_id == 421
    assert ours.vocab_size == 422
    write(llama2, "tokenizer_config.json", LLAMA2 | {"added_tokens_decoder": {"420": added("<x>", 420)}})
    ours, theirs = load_tokenizer(llama2), transformers.AutoTokenizer.from_pretrained(llama2)
    for text in ["<|im_start|>user<x>", "</s>x"]:
        assert ours.encode(text, bos=True) == theirs(text).input_ids
    assert ours.eot_id == theirs.eos_token_id == 2


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "by config.json"])
def test_older_files_vocab_json_and_merges_txt(tmp_path, kind):
    style = "qwen2" if "Qwen2" in kind else "gpt2"
    ours, _ = loaded(tmp_path, train(style))
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").unlink()
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocab = content["model"]["vocab"] | ({END_OF_TEXT: special[END_OF_TEXT]} if style == "gpt2" else {})
    write(tmp_path, "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in content["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"eos_token": END_OF_TEXT, "added_tokens_decoder": {str(i): added(t, i) for t, i in special.items()}}
    write(tmp_path, "config.json", {"model_type": style})
    write(tmp_path, "tokenizer_config.json", settings | ({"tokenizer_class": kind} if " " not in kind else {}))
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *random_texts(100), *SPECIAL, "x" + END_OF_TEXT + "<|user|>s y"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.eot_id == theirs.eos_token_id


# --- conventions ------------------------------------------------------------------------------------------------------


# What the models' own files have in tokenizer_config.json.
SETTINGS = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "bos_token": END_OF_TEXT, "add_bos_token": False},
    "llama3": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False},
    "smollm2": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT},
}


@pytest.mark.parametrize("eos", [END_OF_TEXT, {"__type": "AddedToken", "content": END_OF_TEXT}])
@pytest.mark.parametrize("style", STYLES)
def test_what_a_text_begins_with(tmp_path, style, eos):
    tokenizer = train(style)
    loaded(tmp_path, tokenizer)
    if style == "llama3":
        tokenizer.post_processor = template(BEGIN, tokenizer.token_to_id(BEGIN))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", SETTINGS[style] | {"eos_token": eos})
    write(tmp_path, "config.json", {"model_type": "llama"})
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "", END_OF_TEXT]:
        assert ours.encode(text, bos=True) == theirs(text).input_ids
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.eot_id == theirs.eos_token_id
    assert ours.bos_id == (ours.special[BEGIN] if style == "llama3" else None)


@pytest.mark.parametrize("add_bos_token", [True, False, None])
@pytest.mark.parametrize("begin", [BEGIN, None])
def test_the_template_decides_where_there_is_a_tokenizer_json(folder, begin, add_bos_token):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = template(begin, tokenizer.token_to_id(BEGIN))
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    write(folder, "tokenizer_config.json", {"bos_token": BEGIN, "eos_token": END_OF_TEXT} | options)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode("The sea", bos=True) == theirs("The sea").input_ids
    assert (ours.bos_id is not None) == (begin is not None)


@pytest.mark.parametrize("bos", ["<s>", "</s>", {"content": "<s>"}])
@pytest.mark.parametrize("add_bos_token", [True, False])
def test_add_bos_token_decides_where_there_is_none(llama2, add_bos_token, bos):
    write(llama2, "tokenizer_config.json", LLAMA2 | {"add_bos_token": add_bos_token, "bos_token": bos})
    ours = load_tokenizer(llama2)
    if isinstance(bos, dict):
        bos = bos["content"]
        write(llama2, "tokenizer_config.json", LLAMA2 | {"add_bos_token": add_bos_token, "bos_token": bos})
    theirs = transformers.AutoTokenizer.from_pretrained(llama2)
    for text in ["The sea", "", "x</s>y"]:
        assert ours.encode(text, bos=True) == theirs(text).input_ids
    assert ours.bos_id == (ours.special[bos] if add_bos_token else None)


def test_a_text_that_begins_with_bos_gets_no_second_one(llama2):
    # It gets one unless told otherwise.
    write(llama2, "tokenizer_config.json", without(LLAMA2, "add_bos_token", "bos_token"))
    ours = load_tokenizer(llama2)
    assert ours.encode("<s>The sea", bos=True) == ours.encode("<s>The sea")
    assert ours.encode("<s><s>", bos=True) == [1, 1]
    assert ours.encode("x<s>", bos=True) == [1, *ours.encode("x"), 1]


def test_where_end_of_text_comes_from(folder):
    end, begin = 540, 541
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).eot_id == end
    for eos, expected in [(begin, begin), ([begin, end], begin), (None, end)]:
        write(folder, "config.json", {"eos_token_id": eos})
        assert load_tokenizer(folder).eot_id == expected
    for eos, expected in [("<|user|>", 542), ({"content": "<|user|>"}, 542), (None, begin)]:
        write(folder, "config.json", {"eos_token_id": begin})
        write(folder, "tokenizer_config.json", {"eos_token": eos})
        assert load_tokenizer(folder).eot_id == expected


def test_copying(llama2, folder, tmp_path):
    write(llama2, "special_tokens_map.json", {})
    copy_tokenizer(llama2, tmp_path / "copy")
    names = {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names <= {*TOKENIZER_FILES}  # not config.json
    assert load_tokenizer(tmp_path / "copy").encode("<s>The sea") == load_tokenizer(llama2).encode("<s>The sea")
    copy_tokenizer(folder, tmp_path / "other")
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


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

JSON, MODEL, CONFIG, MAP, ADDED = "tokenizer.json", "tokenizer.model", *SETTINGS_FILES


def post(*single, ids=(541,)):
    special = {BEGIN: {"id": BEGIN, "ids": [*ids], "tokens": [BEGIN]}}
    template = {"type": "TemplateProcessing", "single": [*single], "pair": [], "special_tokens": special}
    return edited(post_processor=template)


BERT = {"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]}
A, S = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": BEGIN, "type_id": 0}}
CONTENTS = {  # of tokenizer.json, and what is named
    "end in template": (post(A, S), [BEGIN]),
    "other id before": (post(S, A, ids=(7,)), ["[7]"]),
    "another post-processor": (edited(post_processor=BERT), ["Bert"]),
    "unigram": (model(type="Unigram"), []),
    "a panic": (model(continuing_subword_prefix="##"), []),
    "a field left out": (edited(pre_tokenizer={"type": "Metaspace"}), ["replacement"]),
    "byte missing": (lambda c: c["model"]["vocab"].update(ĀĀ=c["model"]["vocab"].pop("q")), ["`q`"]),
    "merge of nothing": (lambda c: c["model"]["merges"].append("q qqq"), []),
    "same id": (lambda c: c["model"]["vocab"].update(the=300), ["same id"]),
    "huge id": (model(vocab={"a": 2**40}, merges=[]), []),
    "no vocabulary": (lambda c: c["model"].pop("vocab"), ["vocab"]),
    "no end of text": (token(0, content="<end>"), ["eos_token", END_OF_TEXT, CONFIG]),
    "dropout": (model(dropout=0.1), ["dropout"]),  # ids would be drawn at random
}


def beside(name, content):
    return lambda folder: write(folder, name, content)


def configured(**changes):
    return lambda folder: write(folder, CONFIG, json.loads((folder / CONFIG).read_text()) | changes)


def only_config_json(eos):
    return lambda folder: ((folder / CONFIG).unlink(), write(folder, "config.json", {"eos_token_id": eos}))


def cut_short(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


REFUSED = [  # "folder" has a tokenizer.json of bytes, "converted" one with byte_fallback, "llama2" a tokenizer.model
    *(("folder", lambda f, change=change: edit(f, change), JSON, named) for change, named in CONTENTS.values()),
    ("folder", beside(CONFIG, {"eos_token": ["</s>"]}), CONFIG, ["</s>"]),
    ("folder", beside(CONFIG, {"added_tokens_decoder": {"x": {"content": "<x>"}}}), CONFIG, ["'x'"]),
    ("folder", beside(MAP, {"unk_token": {"special": True}}), MAP, ["content"]),
    ("folder", beside(ADDED, {"<x>": "7"}), ADDED, ["<x>"]),
    ("folder", configured(add_prefix_space=True), JSON, ["add_prefix_space"]),
    ("converted", configured(add_prefix_space=False), JSON, ["add_prefix_space"]),
    ("llama2", configured(add_prefix_space=False), MODEL, ["add_prefix_space"]),
    ("folder", configured(split_special_tokens=True), JSON, ["split_special_tokens"]),
    ("llama2", configured(split_special_tokens=True), MODEL, ["split_special_tokens"]),
    ("folder", configured(eos_token="<eos>"), JSON, ["<eos>"]),
    ("llama2", configured(eos_token="<eos>"), MODEL, ["<eos>"]),
    ("llama2", configured(bos_token="<bos>"), MODEL, ["<bos>"]),
    ("llama2", configured(add_eos_token=True), MODEL, ["add_eos_token"]),
    ("llama2", configured(added_tokens_decoder={"300": {"content": "<x>"}}), MODEL, ["300"]),
    ("llama2", configured(added_tokens_decoder={"-1": {"content": "<x>"}}), MODEL, ["-1"]),
    ("llama2", configured(added_tokens_decoder={"420": {"content": "<x>", "lstrip": True}}), MODEL, ["lstrip"]),
    *(("folder", only_config_json(eos), JSON, ["eos_token_id"]) for eos in (700, [5, 540], [], "x", True)),
    ("folder", cut_short(JSON), JSON, []),
    ("folder", cut_short(CONFIG), CONFIG, []),
    ("folder", lambda folder: (folder / JSON).write_bytes(b"\xff{}"), JSON, ["UTF-8"]),
    ("llama2", cut_short(MODEL), MODEL, ["download"]),
    ("llama2", lambda folder: (folder / MODEL).write_bytes(b""), MODEL, ["download"]),
]


@pytest.mark.parametrize(("kind", "change", "name", "named"), REFUSED)
def test_what_is_refused_is_named_with_its_file(request, kind, change, name, named):
    folder = request.getfixturevalue(kind)
    load_tokenizer(folder)  # before the change it is in order
    change(folder)
    assert_refused(folder, name, *named)


@pytest.mark.parametrize(("kind", "prefixed"), [("folder", False), ("converted", True), ("llama2", True)])
def test_settings_that_say_what_the_files_do_are_read(request, kind, prefixed):
    folder = request.getfixturevalue(kind)
    ids = load_tokenizer(folder).encode(TEXTS[0])
    configured(add_prefix_space=prefixed, split_special_tokens=False, add_eos_token=False)(folder)
    assert load_tokenizer(folder).encode(TEXTS[0]) == ids


@pytest.mark.parametrize("merges", ["a", "a b c", "a b"])
def test_merges_of_older_files_that_are_none(folder, merges):
    (folder / JSON).unlink()
    write(folder, "vocab.json", {"a": 0, "b": 1, END_OF_TEXT: 2})
    write(folder, "config.json", {"model_type": "gpt2"})
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert_refused(folder, "vocab.json")
    write(folder, CONFIG, {"tokenizer_class": "BartTokenizer"})
    assert_refused(folder, "vocab.json", "bart", "AutoTokenizer")


def test_missing_files_and_packages_are_named(folder, converted, llama2, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=JSON):
        load_tokenizer(tmp_path / "nowhere")
    for package, needs in (("tokenizers", converted), ("sentencepiece", llama2)):
        monkeypatch.setitem(sys.modules, package, None)
        assert_refused(needs, "tokenizer", f"pip install {package}")
    assert load_tokenizer(folder).encode(END_OF_TEXT) == [540]  # tiktoken needs neither
