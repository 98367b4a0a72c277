"""Text <-> token ids, from the tokenizer.json that comes with open weights, or a GGUF file's metadata.

tiktoken reads it where it is plain byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen, data/base), the tokenizers library
(pip install tokenizers) where it is anything else; the ids are the library's either way.

Byte-level BPE in three steps: a pattern cuts the text into pieces (roughly words with their leading space), the UTF-8
bytes of each piece are its first tokens, and neighbouring tokens are merged, most frequent pair first, as long as the
file knows a merge for them. Special tokens such as <|endoftext|> are found in the text before all that.
"""

import json
import math
import re
import unicodedata
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tiktoken

from gpt.gguf import below, is_gguf, open_gguf
from tools.cli import atomic
from tools.schema import build, read_bytes, read_json, reading, shown

# A model's files that say how its text becomes tokens.
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
# What else says how a model is used, and changes with neither its weights nor its tokenizer.
COMPANIONS = ["chat_template.jinja", "chat_template.json", "generation_config.json"]
REMEDY = "make it, with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"


class Tokenizer:
    """What both kinds share.

    special: {text: id} of the tokens that are found in a text as they are spelled. vocab_size: the largest id + 1, which
    the model's vocabulary must hold. load_tokenizer sets bos_id, the id every text begins with (None where the model's
    files ask for none), and eot_id, which ends a document.
    missing: bytes that a byte-level vocabulary lacks, as SmolLM2's does, since its training text did not have them.
    """

    bos_id = eot_id = None
    has_chat_template = False  # whether its files have one; nothing here applies it

    def __init__(self, special, vocab_size, missing):
        self.special, self.vocab_size, self.missing = special, vocab_size, missing
        self.special_bytes = {token: text.encode() for text, token in special.items()}

    def encode(self, text, bos=False):
        """Token ids (list of int) of a text. bos: begin with bos_id, where there is one and the text does not yet."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character becomes U+FFFD
        ids = self.ids_of(text)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def refuse_missing(self, text):
        """Raises ValueError for a character without a token, which would otherwise be left out, and nothing said."""
        if self.missing and not self.missing.isdisjoint(text.encode()):
            odd = next(c for c in text if not self.missing.isdisjoint(c.encode()))
            raise ValueError(f"a text has the character {odd!r} ({ord(odd):#x}), for which the tokenizer has no token")

    def token_bytes(self, token):
        """The UTF-8 bytes that one id stands for, perhaps not a whole character; b"" for an id that no token has."""
        return self.special_bytes[token] if token in self.special_bytes else self.ordinary_bytes(token)


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE as a tiktoken encoding.

    pattern: cuts text into pieces; ranks: {token bytes: id}; nfc: whether text is put into Unicode's form C first. (That
    form is Python's: the tokenizers library knows no combining marks newer than Unicode 9, and leaves them unsorted.)
    """

    def __init__(self, pattern, ranks, nfc, special):
        missing = {byte for byte in range(256) if bytes([byte]) not in ranks}
        super().__init__(special, max([*ranks.values(), *special.values()]) + 1, missing)
        self.encoding = tiktoken.Encoding("open weights", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.nfc, self.ordinary = nfc, {token: text for text, token in ranks.items()}
        # Where several special tokens match, the longest; (?!) matches nowhere.
        texts = sorted(map(re.escape, special), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(texts) or '(?!)'})")

    def ids_of(self, text):
        ids = []
        for i, part in enumerate(self.pattern.split(text)):  # every second part is a special token
            if i % 2:
                ids.append(self.special[part])
            else:
                part = unicodedata.normalize("NFC", part) if self.nfc else part
                self.refuse_missing(part)
                ids += self.encoding.encode_ordinary(part)
        return ids

    def ordinary_bytes(self, token):
        return self.ordinary.get(token, b"")

    def decode(self, ids):
        """The text of token ids. Incomplete UTF-8 becomes U+FFFD; ids of no token (a padded vocabulary) are skipped."""
        return b"".join(map(self.token_bytes, map(int, ids))).decode("utf-8", errors="replace")


class LibraryTokenizer(Tokenizer):
    """Any other tokenizer.json, read by the tokenizers library. content: of the file."""

    def __init__(self, content):
        try:
            import tokenizers
        except ImportError:
            raise ValueError("this model's tokenizer needs one more package: pip install tokenizers") from None
        if content["model"].get("dropout"):
            raise ValueError("its BPE has a dropout: ids would be drawn at random")
        try:
            self.library = tokenizers.Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))
        except BaseException as error:  # the library raises Exception itself, and panics that are none
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(shown(str(error))) from None
        added, vocab = self.library.get_added_tokens_decoder(), self.library.get_vocab()
        self.alphabet = byte_alphabet() if "ByteLevel" in str(content.get("pre_tokenizer")) else {}
        missing = {byte for character, byte in self.alphabet.items() if character not in vocab}
        super().__init__({token.content: i for i, token in added.items()}, max(vocab.values()) + 1, missing)

    def ids_of(self, text):
        self.refuse_missing(text)
        return self.library.encode(text, add_special_tokens=False).ids if text else []

    def ordinary_bytes(self, token):
        piece = self.library.id_to_token(token) or ""
        if self.alphabet.keys() >= {*piece}:
            return bytes(map(self.alphabet.get, piece))
        # As SentencePiece writes them: <0x0A> stands for a byte, ▁ for a space.
        return bytes.fromhex(piece[3:5]) if re.fullmatch("<0x[0-9A-F]{2}>", piece) else piece.replace("▁", " ").encode()

    def decode(self, ids):
        return self.library.decode([int(token) for token in ids], skip_special_tokens=False)


@dataclass
class AddedToken:
    """A token that is found in the text as it is spelled, and its options in tokenizer.json."""

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def load_tokenizer(folder):
    """The Tokenizer of a folder's tokenizer.json or of a GGUF file.

    (transformers builds some tokenizers anew and may differ from the library and so from us: Llama's, from "legacy".)
    Raises FileNotFoundError without this file; ValueError when it is malformed or needs a package that is not installed.
    """
    folder = Path(folder)
    content, config = gguf_tokenizer(folder) if is_gguf(folder) else read_files(folder)
    with reading(folder if is_gguf(folder) else folder / "tokenizer.json", "tokenizer"):
        if config.get("split_special_tokens"):
            raise ValueError("split_special_tokens in tokenizer_config.json is not supported: take it out")
        plain = plain_byte_pairs(content)
        tokenizer = BytePairTokenizer(*plain) if plain else LibraryTokenizer(content)
        tokenizer.bos_id = beginning(content.get("post_processor"), tokenizer.special)
        tokenizer.eot_id = end_of_text(folder, config.get("eos_token"), tokenizer.special)
    beside = any((folder / name).exists() for name in COMPANIONS if name.startswith("chat_template"))
    tokenizer.has_chat_template = bool(config.get("chat_template")) or beside
    return tokenizer


def read_files(folder):
    """What is in tokenizer.json, and in tokenizer_config.json, which may be absent."""
    config, older = (read_json(folder / name) if (folder / name).exists() else {} for name in TOKENIZER_FILES[1:])
    # As in transformers, the older special_tokens_map.json counts where the config does not list the tokens itself.
    config = config if "added_tokens_decoder" in config else config | older
    return read_json(folder / "tokenizer.json", REMEDY), config


def copy_tokenizer(source, target):
    """Copy the tokenizer's files, and what else goes with a model, from one folder to another.

    From a GGUF file, what the tokenizer's files would be is written. A link is followed inside its folder and into a Hub
    cache's blobs: raises ValueError for any other, whose content may be private, before anything is written.
    """
    source, files = Path(source), {}
    if is_gguf(source):
        for name, content in zip(TOKENIZER_FILES, gguf_tokenizer(source)):
            files[name] = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
    home = source.resolve()
    places = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in (source / name for name in [*TOKENIZER_FILES, *COMPANIONS]):
        if path.exists():
            if not any(path.resolve().is_relative_to(place) for place in places):
                raise ValueError(f"{path} is a link to a file elsewhere, not copied: put the file itself in its place")
            files[path.name] = read_bytes(path)
    for name, content in files.items():
        with atomic(Path(target) / name) as temporary:
            temporary.write_bytes(content)


# --- plain byte-level BPE ----------------------------------------------------------------------------------------------

# GPT-2, as tiktoken writes it: pieces equal to those of \s+(?!\S)|\s+ at the end, without the slow backtracking.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SmolLM2: every digit is cut out first, and GPT-2's pattern sees what is between: spaces before a digit end such a part.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
# The tokenizers library cuts out Unicode 17's digits too, which tiktoken's \p{N} does not know.
DIGITS_PATTERN = DIGITS_PATTERN.replace(r"\p{N}", r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]")
# Llama 3, and Qwen2, 2.5 and 3, as their files spell them.
LLAMA3_PATTERN, QWEN2_PATTERN = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NFC = {"type": "NFC"}


def split(pattern):
    """A pre_tokenizer that cuts with a pattern."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL | {"use_regex": False}]}


DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}
# llama.cpp's names -> (pre_tokenizer, normalizer) of tokenizer.json, the pattern for tiktoken.
PRE_TOKENIZERS = {
    "gpt-2": (BYTE_LEVEL, None, GPT2_PATTERN),
    "smollm": (DIGITS, None, DIGITS_PATTERN),
    "llama-bpe": (split(LLAMA3_PATTERN), None, LLAMA3_PATTERN),
    "qwen2": (split(QWEN2_PATTERN), NFC, QWEN2_PATTERN),
}


def pattern_of(pre_tokenizer):
    """The pattern that cuts text into pieces as this pre_tokenizer does; None where it is not one of PRE_TOKENIZERS."""

    def steps(one):  # what makes no difference to ids, and what older files leave out, is the same in all
        return [{"use_regex": True} | step | {"trim_offsets": None} for step in one.get("pretokenizers", [one])]

    given = steps(pre_tokenizer or {})
    return next((pattern for known, _, pattern in PRE_TOKENIZERS.values() if steps(known) == given), None)


def plain_byte_pairs(content):
    """(pattern, ranks, nfc, special) of a BytePairTokenizer that gives the library's ids for every text, or None."""
    model, normalizer = content["model"], content.get("normalizer")
    pattern = pattern_of(content.get("pre_tokenizer"))
    more = any(map(model.get, ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")))
    if more or pattern is None or normalizer not in (None, NFC) or model.get("type", "BPE") != "BPE":
        return None
    added = [build(AddedToken, token) for token in content.get("added_tokens") or [] if token["content"]]
    late = {token.normalized for token in added}  # which are looked for after the others, and in normalized text
    if any(token.lstrip or token.rstrip or token.single_word for token in added) or len(late) > 1:
        return None
    vocab, special = model["vocab"], {token.content: token.id for token in added}
    following = len(vocab)
    for text, token in special.items():  # the library numbers them itself, whatever their "id"
        if token != vocab.get(text, following):
            return None
        following = max(following, token + 1)
    ids = [*(vocab | special).values()]
    if (normalizer and True in late) or any(type(i) is not int for i in ids) or len({*ids}) < len(ids):
        return None
    ranks = ranks_of(vocab, model["merges"], special, model.get("ignore_merges", False))
    return (pattern, ranks, bool(normalizer), special) if ranks else None


def byte_alphabet():
    """The character that stands for each byte in a tokenizer.json, as {character: byte}.

    Printable bytes stand for themselves; the others, such as the space, for characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def ranks_of(vocab, merges, special, ignore_merges):
    """{token bytes: id}, tiktoken's only table, in which the id is also the token's priority. None where merges differ.

    They agree if the file lists, in the order of their ids, the pairs that make the tokens when the lowest id is merged
    first. Other pairs, which Llama 3's file lists too, never meet. ignore_merges: a whole piece that is a token needs none.
    """
    alphabet = byte_alphabet()
    order = {tuple(merge.split(" ") if isinstance(merge, str) else merge): place for place, merge in enumerate(merges)}
    merged = {left + right for left, right in order}
    # A special token is found before any merging, and has no rank; unless it is a result of merging too.
    ranks = {text: token for text, token in vocab.items() if text not in special or text in merged or text in alphabet}
    known = vocab.keys() >= merged.union(*order)
    if not known or not all(text and alphabet.keys() >= {*text} for text in ranks):
        return None
    pairs = [last_merge(ranks, text) for text in sorted(ranks, key=ranks.get) if len(text) > 1]
    places = [order.get(pair, -1) for pair in pairs if len(pair) == 2 or not ignore_merges]
    if -1 in places or places != sorted(places):
        return None
    return {bytes(map(alphabet.get, text)): token for text, token in ranks.items()}


def last_merge(ranks, text):
    """What is left of a token's bytes when all is merged, lowest rank first, but the last step to the token itself."""
    parts = list(text)
    while len(parts) > 2:
        joined = [ranks.get(a + b, math.inf) for a, b in pairwise(parts)]
        best = min(joined)
        if best == math.inf:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


# --- beginning and end -------------------------------------------------------------------------------------------------


def beginning(post_processor, special):
    """The id that the post_processor puts before every text, or None. Raises ValueError where it adds anything else."""
    ids = []
    for step in (post_processor or {}).get("processors", [post_processor or {"type": "ByteLevel"}]):
        kinds = [[*item][0] for item in step.get("single", [])]
        if step["type"] == "TemplateProcessing" and kinds in (["Sequence"], ["SpecialToken", "Sequence"]):
            for item in step["single"][:-1]:
                ids += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        elif step["type"] != "ByteLevel":
            raise ValueError(f"the post_processor {shown(step)} adds other tokens than one before a text")
    if len(ids) > 1 or not {*ids} <= {*special.values()}:
        raise ValueError(f"the post_processor puts the ids {ids} before a text: not one added token")
    return ids[0] if ids else None


def end_of_text(folder, eos, special):
    """The id that ends a document: of tokenizer_config.json's eos_token, else config.json's, else <|endoftext|>'s."""
    if eos is None and (folder / "config.json").exists():
        ids = read_json(folder / "config.json").get("eos_token_id")
        eos = ids[0] if isinstance(ids, list) else ids
        eos = next((text for text, token in special.items() if token == eos), eos)
    if isinstance(eos, dict):  # a token with its options
        eos = eos["content"]
    eos = "<|endoftext|>" if eos is None else eos
    if eos not in special:
        raise ValueError(f"the end of text {shown(eos)} is no added token: set eos_token in tokenizer_config.json")
    return special[eos]


# --- a GGUF file's -----------------------------------------------------------------------------------------------------

# Kinds of token, as SentencePiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)


@dataclass(kw_only=True)
class Vocabulary:
    """The metadata that begin with "tokenizer.ggml."; of a Literal or None, anything else would give other ids."""

    model: Literal["gpt2", "llama"]  # byte-level BPE, or SentencePiece's BPE
    tokens: list[str]
    token_type: list[int]
    pre: Literal[*PRE_TOKENIZERS, None] = None  # of byte-level BPE, as the next
    merges: list[str] | None = None
    scores: list[float] | None = None  # of SentencePiece's
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    add_bos_token: bool | None = None
    add_eos_token: Literal[False] = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: Literal[False] = False
    precompiled_charsmap: None = None


def gguf_tokenizer(path):
    """What tokenizer.json and tokenizer_config.json would hold for a GGUF file's tokenizer."""
    _, metadata, _ = open_gguf(path)
    with reading(path, "GGUF file"):
        given = build(Vocabulary, below("tokenizer.ggml.", metadata))
        bytewise, kinds = given.model == "gpt2", given.token_type
        used = {token: i for i, (token, kind) in enumerate(zip(given.tokens, kinds, strict=True)) if kind != UNUSED}
        if len(used) < len(kinds) - kinds.count(UNUSED):
            raise ValueError("two entries of tokenizer.ggml.tokens are the same")
        names = {i: token for token, i in used.items() if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)}

        def token_of(name, default):
            given_id = getattr(given, f"{name}_token_id")
            token = default if given_id is None else given_id
            if token not in names:
                raise ValueError(f"tokenizer.ggml.{name}_token_id={token} is not the id of a control token")
            return names[token]

        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings["eos_token"] = token_of("eos", used.get("<|endoftext|>") if bytewise else 2)
        settings["chat_template"] = metadata.get("tokenizer.chat_template")
        added = [asdict(AddedToken(token, i, special=kinds[i] != USER_DEFINED)) for i, token in names.items()]
        content = {"version": "1.0", "added_tokens": added, "post_processor": None}
        begins = given.add_bos_token
        if begins or begins is None and (not bytewise or given.pre == "llama-bpe"):
            settings["bos_token"] = bos = token_of("bos", None if bytewise else 1)
            content["post_processor"] = template(bos, used[bos])
        if bytewise:
            content["pre_tokenizer"], content["normalizer"], _ = PRE_TOKENIZERS[given.pre]
            content["decoder"] = BYTE_LEVEL
            model = {"ignore_merges": given.pre == "llama-bpe", "vocab": used, "merges": given.merges}
        else:
            content |= spaces(given.add_space_prefix)
            scores = {token: given.scores[i] for token, i in used.items() if kinds[i] == NORMAL}
            unknown = next((token for token, i in used.items() if kinds[i] == UNKNOWN), None)
            vocab = {token: i for i, token in enumerate(given.tokens)} | used  # unused ones too: without gaps
            model = {"unk_token": unknown, "vocab": vocab, "merges": merges_of(scores)}
            model |= {"fuse_unk": True, "byte_fallback": True}
        content["model"] = {"type": "BPE"} | model
    return content, settings


def template(bos, token):
    """The post_processor of tokenizer.json that puts one token before every text."""
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, first],
        "pair": [first, second],
        "special_tokens": {bos: {"id": bos, "ids": [token], "tokens": [bos]}},
    }


def spaces(prefix):
    """What tokenizer.json says of SentencePiece's spaces, which are written ▁. prefix: whether a text begins with one."""

    def replace(old, new):
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    begin = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, replace(" ", "▁")]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def merges_of(scores):
    """The pairs to merge, in order, that {piece: score} comes to.

    SentencePiece joins whichever two neighbours make the piece with the highest score. Raises ValueError where two pieces
    have the same: no order says what it does then, and such scores are made up by converters that found none.
    """
    pairs, made = [], {}  # made: {score: piece}
    for piece, score in scores.items():
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found = [(-score, -len(left), left, right) for left, right in cuts if left in scores and right in scores]
        if found and made.setdefault(score, piece) != piece:
            both = f"{shown(made[score])} and {shown(piece)}"
            raise ValueError(f"tokenizer.ggml.scores do not say which of {both} is merged first")
        pairs += found
    return [[left, right] for _, _, left, right in sorted(pairs)]
