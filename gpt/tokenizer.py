"""Text <-> token ids, from the files that come with open weights.

tokenizer.json first: tiktoken reads it where it is plain byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen, data/base), the
tokenizers library (pip install tokenizers) where it is anything else; the ids are the library's either way. Without it,
sentencepiece (pip install sentencepiece) reads tokenizer.model, and tiktoken vocab.json with merges.txt. A GGUF file has
the same in its metadata: gpt/gguf.py translates.

Byte-level BPE in three steps: a pattern cuts the text into pieces (roughly words with their leading space), the UTF-8
bytes of each piece are its first tokens, and neighbouring tokens are merged, most frequent pair first, as long as the
file knows a merge for them. Special tokens such as <|endoftext|> are found in the text before all that.
"""

import json
import math
import re
import unicodedata
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import tiktoken

from gpt.gguf import find_gguf, gguf_tokenizer
from tools.cli import atomic
from tools.schema import build, fit, read_bytes, read_json, read_text, reading, shown

# A model's files that say how its text becomes tokens.
SETTINGS_FILES = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", *SETTINGS_FILES]
# What else says how a model is used, and changes with neither its weights nor its tokenizer.
COMPANIONS = ["chat_template.jinja", "chat_template.json", "generation_config.json"]


class Tokenizer:
    """What every kind shares: special tokens, spelled out in a text, become their ids; the rest is the kind's.

    special: {text: id}. vocab_size: the largest id + 1, which the model's vocabulary must hold. load_tokenizer sets
    bos_id, the id every text begins with (None where the model's files ask for none), and eot_id, which ends a document.
    missing: bytes that a byte-level vocabulary lacks, as SmolLM2's does, since its training text did not have them.
    """

    bos_id = eot_id = None
    has_chat_template = False  # whether its files have one; nothing here applies it
    missing = frozenset()

    def __init__(self, special, vocab_size):
        self.special, self.vocab_size = special, vocab_size
        self._special_bytes = {token: text.encode() for text, token in special.items()}
        # Where several match, the longest; (?!) matches nowhere.
        texts = sorted(map(re.escape, special), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(texts) or '(?!)'})")

    def encode(self, text, bos=False):
        """Token ids (list of int) of a text. bos: begin with bos_id, where there is one and the text does not yet."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character becomes U+FFFD
        ids = self.ids_of(text)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def ids_of(self, text):
        ids = []
        for i, part in enumerate(self._pattern.split(text)):  # every second part is a special token
            if i % 2:
                ids.append(self.special[part])
            elif part:
                ids += self.ordinary_ids(part, first=i == 0)
        return ids

    def refuse_missing(self, text):
        """Raises ValueError for a character without a token, which would otherwise be left out, and nothing said."""
        if self.missing and not self.missing.isdisjoint(text.encode()):
            odd = next(c for c in text if not self.missing.isdisjoint(c.encode()))
            raise ValueError(f"a text has the character {odd!r} ({ord(odd):#x}), for which the tokenizer has no token")

    def decode(self, ids):
        """The text of token ids. Incomplete UTF-8 becomes U+FFFD; ids of no token (a padded vocabulary) are skipped."""
        return b"".join(map(self.token_bytes, map(int, ids))).decode("utf-8", errors="replace")

    def token_bytes(self, token):
        """The UTF-8 bytes that one id stands for, perhaps not a whole character; b"" for an id that no token has."""
        return self._special_bytes[token] if token in self._special_bytes else self.ordinary_bytes(token)


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE as a tiktoken encoding.

    pattern: cuts text into pieces; ranks: {token bytes: id}; nfc: whether text is put into Unicode's form C first. (That
    form is Python's: the tokenizers library knows no combining marks newer than Unicode 9, and leaves them unsorted.)
    """

    def __init__(self, pattern, ranks, nfc, special):
        super().__init__(special, max([*ranks.values(), *special.values()]) + 1)
        self.encoding = tiktoken.Encoding("open weights", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.nfc = nfc
        self._bytes = {token: text for text, token in ranks.items()}
        self.missing = {byte for byte in range(256) if bytes([byte]) not in ranks}

    def ordinary_ids(self, text, first):
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        self.refuse_missing(text)
        return self.encoding.encode_ordinary(text)

    def ordinary_bytes(self, token):
        return self._bytes.get(token, b"")


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
        super().__init__({token.content: i for i, token in added.items()}, max(vocab.values()) + 1)
        self.alphabet = byte_alphabet() if "ByteLevel" in str(content.get("pre_tokenizer")) else {}
        self.missing = {byte for character, byte in self.alphabet.items() if character not in vocab}

    def ids_of(self, text):
        self.refuse_missing(text)
        return self.library.encode(text, add_special_tokens=False).ids if text else []

    def decode(self, ids):
        return self.library.decode([int(token) for token in ids], skip_special_tokens=False)

    def ordinary_bytes(self, token):
        piece = self.library.id_to_token(token) or ""
        return bytes(map(self.alphabet.get, piece)) if self.alphabet.keys() >= {*piece} else bytes_of(piece)


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model's bytes, read by the sentencepiece package. A text's first word gets the space of the others.

    added: further special tokens, a list of AddedToken. legacy: the text after a special token gets that space too.
    """

    def __init__(self, model, added, legacy):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ValueError("this model's tokenizer needs one more package: pip install sentencepiece") from None
        try:
            self.processor = SentencePieceProcessor(model_proto=model)
            self.prefixed = self.processor.normalize("x") != "x"
            # Without the space: protocol buffers may be appended, and the last add_dummy_prefix, here false, counts.
            self.inner = self.processor if legacy else SentencePieceProcessor(model_proto=model + b"\x1a\x02\x18\x00")
        except RuntimeError:
            raise ValueError("it is not a SentencePiece model, download it again") from None
        self.pieces = [self.processor.id_to_piece(i) for i in range(self.processor.vocab_size())]
        own = [i for i in range(len(self.pieces)) if self.processor.is_control(i) or self.processor.is_unknown(i)]
        special = {self.pieces[i]: i for i in own}
        for token in added:
            taken = token.id < len(self.pieces) and token.id not in own and self.pieces[token.id] != token.content
            if taken or token.id < 0 or token.odd:
                raise ValueError(f"the added token {shown(asdict(token))} has another's id, or odd options")
            special[token.content] = token.id
        super().__init__(special, max(len(self.pieces) - 1, *special.values()) + 1)

    def ordinary_ids(self, text, first):
        return (self.processor if first else self.inner).encode(text)

    def ordinary_bytes(self, token):
        return bytes_of(self.pieces[token]) if 0 <= token < len(self.pieces) else b""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" " if self.prefixed else "")


def bytes_of(piece):
    """The bytes of a SentencePiece token: <0x0A> stands for a byte, ▁ for a space."""
    return bytes.fromhex(piece[3:5]) if re.fullmatch("<0x[0-9A-F]{2}>", piece) else piece.replace("▁", " ").encode()


@dataclass
class AddedToken:
    """A token that is found in the text as it is spelled. What is odd takes spaces with it, or stands alone only."""

    content: str
    id: int | None = None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def odd(self):
        return self.lstrip or self.rstrip or self.single_word


@dataclass
class Settings:
    """tokenizer_config.json, as far as ids depend on it, and its chat template."""

    tokenizer_class: str | None = None
    unk_token: str | AddedToken | None = None
    bos_token: str | AddedToken | None = None
    eos_token: str | AddedToken | None = None
    pad_token: str | AddedToken | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    split_special_tokens: bool | None = None
    legacy: bool | None = None
    chat_template: object = None  # a text, or several with names
    added_tokens_decoder: dict[str, AddedToken] = field(default_factory=dict)

    def text(self, name, default=None):
        """The text of bos_token or another of them; `default` where none is given."""
        token = getattr(self, name)
        return default if token is None else getattr(token, "content", token)


def load_tokenizer(folder):
    """The Tokenizer of a folder, from tokenizer.json; else from tokenizer.model; else from vocab.json and merges.txt.

    (transformers builds some tokenizers anew and may differ from the library and so from us: Llama's, from "legacy".)
    Raises FileNotFoundError without these files; ValueError when they are malformed, contradict each other, or need a
    package that is not installed.
    """
    folder, file = Path(folder), find_gguf(folder)
    found = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if (folder / name).exists()]
    name = "tokenizer.json" if file or not found else found[0]
    files = read_gguf_files(file) if file else read_files(folder, name)
    settings, added = read_settings(folder, files)
    with reading(file or folder / name, "tokenizer"):
        if settings.split_special_tokens:
            raise ValueError("split_special_tokens=true in tokenizer_config.json is not supported: take it out")
        if name == "tokenizer.model":
            if settings.add_eos_token:
                raise ValueError("add_eos_token=true in tokenizer_config.json is not supported: take it out")
            tokenizer = SentencePieceTokenizer(read_bytes(folder / name), added, settings.legacy)
            if settings.add_bos_token in (None, True):
                tokenizer.bos_id = id_of(settings.text("bos_token", "<s>"), tokenizer.special, "bos_token")
        else:
            older = name == "vocab.json"
            content = from_older_files(folder, files[name], settings, added) if older else files[name]
            plain = plain_byte_pairs(content)
            tokenizer = BytePairTokenizer(*plain) if plain else LibraryTokenizer(content)
            tokenizer.bos_id = beginning(content.get("post_processor"), tokenizer.special)
        tokenizer.eot_id = end_of_text(folder, settings, tokenizer.special)
        beside = any((folder / name).exists() for name in COMPANIONS if name.startswith("chat_template"))
        tokenizer.has_chat_template = bool(settings.chat_template) or beside
        if settings.add_prefix_space is not None:
            prefixed = b"".join(map(tokenizer.token_bytes, tokenizer.encode("x"))).startswith(b" ")
            if settings.add_prefix_space != prefixed:
                raise ValueError(f"tokenizer_config.json contradicts it: add_prefix_space={settings.add_prefix_space}")
    return tokenizer


def read_files(folder, name):
    """{name: content} of a folder's tokenizer: `name`, if it is *.json, and the smaller ones."""
    small = [one for one in SETTINGS_FILES if (folder / one).exists()]
    return {one: read_json(folder / one) for one in [name, *small] if one.endswith(".json")}


def read_gguf_files(file):
    """{name: content} of a GGUF file's tokenizer, as read_files has it."""
    with reading(file, "GGUF file"):
        return gguf_tokenizer(file, PRE_TOKENIZERS)


def copy_tokenizer(source, target):
    """Copy the tokenizer's files, and what else goes with a model, from one folder to another.

    From a GGUF file, what the tokenizer's files would be is written. A link is followed inside its folder and into a Hub
    cache's blobs: raises ValueError for any other, whose content may be private, before anything is written.
    """
    source = Path(source)
    files, names = {}, [*TOKENIZER_FILES, *COMPANIONS]
    if file := find_gguf(source):
        names = COMPANIONS  # tokenizer files beside it are another's, and were not used
        for name, content in read_gguf_files(file).items():
            files[name] = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
    home = source.resolve()
    places = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in (source / name for name in names):
        if path.exists():
            if not any(path.resolve().is_relative_to(place) for place in places):
                raise ValueError(f"{path} is a link to a file elsewhere, not copied: put the file itself in its place")
            files[path.name] = read_bytes(path)
    for name, content in files.items():
        with atomic(Path(target) / name) as temporary:
            temporary.write_bytes(content)


# --- plain byte-level BPE ----------------------------------------------------------------------------------------------

# Patterns as the files spell them -> as tiktoken runs them fastest, with the same pieces.
SPLIT_PATTERNS = {
    # Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s"
    ),
    # Qwen2, 2.5 and 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s"
    ),
}
# GPT-2, as tiktoken writes it: pieces equal to those of \s+(?!\S)|\s+ at the end, without the slow backtracking.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SmolLM2: every digit is cut out first, and GPT-2's pattern sees what is between: spaces before a digit end such a part.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
# The tokenizers library cuts out Unicode 17's digits too, which tiktoken's \p{N} does not know.
DIGITS_PATTERN = DIGITS_PATTERN.replace(r"\p{N}", r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]")

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def then_bytes(**step):
    """A pre_tokenizer that cuts with `step` first."""
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL | {"use_regex": step["type"] == "Digits"}]}


LLAMA3, QWEN2 = (
    then_bytes(type="Split", pattern={"Regex": regex}, behavior="Isolated", invert=False) for regex in SPLIT_PATTERNS
)
NFC = {"type": "NFC"}
# (pre_tokenizer, normalizer) of tokenizer.json, by the names that llama.cpp gives them; then the patterns for tiktoken.
PRE_TOKENIZERS = {
    "gpt-2": (BYTE_LEVEL, None),
    "smollm": (then_bytes(type="Digits", individual_digits=True), None),
    "llama-bpe": (LLAMA3, None),
    "qwen2": (QWEN2, NFC),
}
PATTERNS = dict(zip(PRE_TOKENIZERS, (GPT2_PATTERN, DIGITS_PATTERN, *SPLIT_PATTERNS.values())))


def pattern_of(pre_tokenizer):
    """The pattern that cuts text into pieces as this pre_tokenizer does; None where it is not one of PRE_TOKENIZERS."""

    def steps(one):  # what makes no difference to ids, and what older files leave out, is the same in all
        return [{"use_regex": True} | step | {"trim_offsets": None} for step in one.get("pretokenizers", [one])]

    given = steps(pre_tokenizer or {})
    return next((PATTERNS[name] for name, (known, _) in PRE_TOKENIZERS.items() if steps(known) == given), None)


def plain_byte_pairs(content):
    """(pattern, ranks, nfc, special) of a BytePairTokenizer that gives the library's ids for every text, or None."""
    model, normalizer = content["model"], content.get("normalizer")
    pattern = pattern_of(content.get("pre_tokenizer"))
    more = any(map(model.get, ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")))
    if more or pattern is None or normalizer not in (None, NFC) or model.get("type", "BPE") != "BPE":
        return None
    added = [build(AddedToken, token) for token in content.get("added_tokens") or [] if token["content"]]
    late = {token.normalized for token in added}  # which are looked for after the others, and in normalized text
    if any(token.odd for token in added) or len(late) > 1 or (normalizer and True in late):
        return None
    vocab, special = model["vocab"], {token.content: token.id for token in added}
    following = len(vocab)
    for text, token in special.items():  # the library numbers them itself, whatever their "id"
        if token != vocab.get(text, following):
            return None
        following = max(following, token + 1)
    ids = [*(vocab | special).values()]
    if len({*ids}) < len(ids):
        raise ValueError("two of its tokens have the same id")
    if any(type(i) is not int for i in ids):
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
    """{token bytes: id}, tiktoken's only table: the id is also the token's priority when merging. Else None.

    The file instead lists pairs to merge, in order. Both give the same ids for every text if they do so for the bytes of
    each token: whichever pair forms a token within a text is the one that forms it from its bytes alone, as all merges
    inside it are the same. So that pair must be listed, and pairs listed in the order of their tokens' ids; other pairs,
    which Llama 3's file lists too, never meet.
    ignore_merges: a whole piece that is a token needs no merges, in the file as in tiktoken.
    """
    alphabet = byte_alphabet()
    order = {tuple(merge.split(" ") if isinstance(merge, str) else merge): place for place, merge in enumerate(merges)}
    merged = {left + right for left, right in order}
    # A special token is found before any merging, and has no rank; unless it is a result of merging too.
    ranks = {text: token for text, token in vocab.items() if text not in special or text in merged or text in alphabet}
    parts = {part for pair in order for part in pair}
    if not (parts | merged <= vocab.keys()) or not all(text and alphabet.keys() >= {*text} for text in ranks):
        return None
    previous = 0
    for text in sorted((text for text in ranks if len(text) > 1), key=ranks.get):
        pair = last_merge(ranks, text)
        if len(pair) > 2 and ignore_merges:
            continue  # only ever a whole piece
        if order.get(pair, -1) < previous:
            return None
        previous = order[pair]
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


# --- what stands beside the vocabulary ---------------------------------------------------------------------------------


def read_settings(folder, files):
    """(Settings, [AddedToken]) of {name: content}.

    special_tokens_map.json and added_tokens.json are older: they count, as in transformers, without added_tokens_decoder.
    """
    config, tokens, more = (files.get(name, {}) for name in SETTINGS_FILES)
    if "added_tokens_decoder" in config:
        tokens = more = {}
    config_path, tokens_path, more_path = (folder / name for name in SETTINGS_FILES)
    with reading(tokens_path, "part of a tokenizer"):
        build(Settings, tokens)
    with reading(config_path, "part of a tokenizer"):
        settings = build(Settings, config | tokens)
        added = [replace(token, id=int(i)) for i, token in settings.added_tokens_decoder.items()]
    with reading(more_path, "part of a tokenizer"):
        added += [AddedToken(text, i) for text, i in fit(more, dict[str, int], "added tokens").items()]
    return settings, [token for token in added if token.content]


def from_older_files(folder, vocab, settings, added):
    """What tokenizer.json would hold (dict), from vocab.json and merges.txt, as GPT-2's and Qwen2's first files are."""
    kind = settings.tokenizer_class
    if kind is None and (folder / "config.json").exists():
        kind = read_json(folder / "config.json").get("model_type")
    kind = str(kind).removesuffix("Fast").removesuffix("Tokenizer").lower()
    if kind not in ("gpt2", "qwen2"):
        raise ValueError(
            f"vocab.json and merges.txt of a {shown(kind)} are not supported: make a tokenizer.json with transformers, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    pre_tokenizer, normalizer = PRE_TOKENIZERS[{"gpt2": "gpt-2"}.get(kind, kind)]
    texts = [settings.text(f"{name}_token", "<|endoftext|>") for name in ("unk", "bos", "eos", "pad")]
    known = [token.content for token in added]
    texts = [text for text in dict.fromkeys(texts) if text in vocab and text not in known]
    added = added + [AddedToken(text, vocab[text]) for text in texts]
    lines = read_text(folder / "merges.txt").split("\n")
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": [s for s in lines if s and not s.startswith("#version")]},
        "added_tokens": [asdict(token) for token in sorted(added, key=lambda token: token.id)],
        "pre_tokenizer": pre_tokenizer,
        "normalizer": normalizer,
        "decoder": BYTE_LEVEL,
    }


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


def end_of_text(folder, settings, special):
    """The id that ends a document: of tokenizer_config.json's eos_token, else config.json's, else <|endoftext|>'s."""
    path = Path(folder) / "config.json"
    eos = read_json(path).get("eos_token_id") if settings.eos_token is None and path.exists() else None
    if eos is None:
        return id_of(settings.text("eos_token", "<|endoftext|>"), special, "eos_token")
    ids = fit(eos if isinstance(eos, list) else [eos], list[int], "eos_token_id")
    if not ids or ids[0] not in special.values():
        raise ValueError(f"config.json has the eos_token_id {eos}, which is not the id of an added token")
    return ids[0]


def id_of(text, special, name):
    if text not in special:
        raise ValueError(f"the {name} {shown(text)} is not among the added tokens: set it in tokenizer_config.json")
    return special[text]
