"""Text <-> token ids, from the files that come with open weights: tokenizer.json, or SentencePiece's tokenizer.model.

A GGUF file has the same in its metadata: gpt/gguf.py translates.

Reading order: Tokenizer, BytePairTokenizer (GPT-2, Llama 3, SmolLM2, Qwen), SentencePieceTokenizer (Llama 2, TinyLlama,
Mistral), load_tokenizer, then the checks it makes.

Byte-level BPE in three steps: a pattern cuts the text into pieces (roughly words with their leading space), the UTF-8
bytes of each piece are its first tokens, and neighbouring tokens are merged, most frequent pair first, as long as the
file knows a merge for them. Special tokens such as <|endoftext|> are found in the text before all that.
"""

import json
import math
import re
import struct
import unicodedata
from functools import partial
from itertools import pairwise
from pathlib import Path

import tiktoken

from gpt.gguf import find_gguf, gguf_tokenizer
from tools.cli import atomic
from tools.inputs import SIZE, fits, is_text, is_whole, or_null, read_bytes, read_json, read_text, shown

# A model's files that say how its text becomes tokens.
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]

# What else says how a model is used, and changes with neither its weights nor its tokenizer.
COMPANIONS = ["chat_template.jinja", "chat_template.json", "generation_config.json"]


class Tokenizer:
    """What both kinds of tokenizer share: special tokens, spelled out in a text, become their ids; the rest is theirs.

    special: {text: id}. bos_id: the id every text begins with, None where the model's files ask for none. eot_id: the id
    that ends a document. vocab_size: the largest id + 1, which the model's vocabulary must hold.
    """

    def __init__(self, special, bos_id, eot_id, vocab_size):
        self.special, self.bos_id, self.eot_id, self.vocab_size = special, bos_id, eot_id, vocab_size
        self._special_bytes = {token: text.encode() for text, token in special.items()}
        # Where several match, the longest. A pattern that never matches, where there are none.
        texts = sorted(map(re.escape, special), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(texts)})" if texts else "((?!))")

    def encode(self, text, bos=False):
        """Token ids (list of int) of a text. bos: begin with bos_id, where there is one and the text does not already."""
        ids = []
        for i, part in enumerate(self._pattern.split(text)):  # every second part is a special token
            if i % 2:
                ids.append(self.special[part])
            elif part:
                ids += self.encode_ordinary(part, first=i == 0)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids):
        """The text of token ids. Incomplete UTF-8 becomes U+FFFD; ids that no token has (a padded vocabulary) are skipped."""
        return b"".join(map(self.token_bytes, map(int, ids))).decode("utf-8", errors="replace")

    def token_bytes(self, token):
        """The UTF-8 bytes that one id stands for, perhaps not a whole character; b"" for an id that no token has."""
        return self._special_bytes[token] if token in self._special_bytes else self.ordinary_bytes(token)


LONGEST_SPACE = 900_000  # tiktoken panics at a million


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE as a tiktoken encoding.

    pattern: cuts text into pieces; ranks: {token bytes: id}; nfc: whether text is put into Unicode's form C first. (That
    form is Python's: the tokenizers library knows no combining marks newer than Unicode 9, and leaves them unsorted.)
    Some vocabularies, such as SmolLM2's, lack bytes that their training text did not have: a text with one is refused.
    """

    def __init__(self, pattern, ranks, nfc, special, bos_id, eot_id):
        super().__init__(special, bos_id, eot_id, max([*ranks.values(), *special.values()]) + 1)
        self.encoding = tiktoken.Encoding("open weights", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.nfc = nfc
        self._bytes = {token: text for text, token in ranks.items()}
        self._missing = {byte for byte in range(256) if bytes([byte]) not in ranks}

    def encode_ordinary(self, text, first):
        if len(text) >= LONGEST_SPACE and re.search(rf"\s{{{LONGEST_SPACE}}}", text):
            raise ValueError(
                f"a text has {LONGEST_SPACE:,} white-space characters in a row, more than tiktoken can cut"
            )
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        if self._missing and not self._missing.isdisjoint(text.encode("utf-8", "replace")):
            odd = next(c for c in text if not self._missing.isdisjoint(c.encode("utf-8", "replace")))
            raise ValueError(f"a text has the character {odd!r} ({ord(odd):#x}), for which the tokenizer has no token")
        return self.encoding.encode_ordinary(text)

    def ordinary_bytes(self, token):
        return self._bytes.get(token, b"")


class SentencePieceTokenizer(Tokenizer):
    """BPE over characters, bytes for those without a token, through the sentencepiece package; spaces are written as ▁.

    A space is part of the word after it, so a text's first word gets one too; decode takes it off again.
    prefix: the parts of a text between special tokens that get that space, "first", "always" (all) or "never". doubled:
    also one that begins with a space itself. split: whether merging stays between spaces. size: of the vocabulary.
    """

    def __init__(self, processor, size, prefix, doubled, split, special, bos_id, eot_id):
        super().__init__(special, bos_id, eot_id, max([size - 1, *special.values()]) + 1)
        self.processor, self.size, self.prefix, self.doubled, self.split = processor, size, prefix, doubled, split

    def encode_ordinary(self, text, first):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character: U+FFFD, as tiktoken
        text = text.replace(" ", "▁")
        if (self.prefix == "always" or (self.prefix == "first" and first)) and (self.doubled or text[0] != "▁"):
            text = "▁" + text
        if self.split:
            return [i for word in self.processor.encode(re.findall("▁[^▁]*|[^▁]+", text)) for i in word]
        return self.processor.encode(text)

    def ordinary_bytes(self, token):
        if not 0 <= token < self.size:
            return b""
        piece = self.processor.id_to_piece(token)
        if self.processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace("▁", " ").encode()

    def decode(self, ids):
        return super().decode(ids).removeprefix(" " if self.prefix != "never" else "")


def load_tokenizer(folder):
    """The Tokenizer of a folder, from tokenizer.json; else from tokenizer.model; else from vocab.json and merges.txt.

    Its ids equal those of the tokenizers library, which reads tokenizer.json as it stands. (transformers builds some
    tokenizers anew and may differ: Llama's, from "legacy".) tokenizer.model alone is read as sentencepiece does.
    Raises FileNotFoundError without these files, ValueError when they are malformed or ask for what is not supported here,
    and when sentencepiece is needed and not installed.
    """
    folder = Path(folder)
    files = read_files(folder)
    settings, content = files.get("tokenizer_config.json", {}), files.get("tokenizer.json")
    file = find_gguf(folder)
    if file and "tokenizer.model" in files:  # its scores are what the file has; its tokenizer.json is for other programs
        content = None
    path = file or folder / ("tokenizer.model" if content is None else "tokenizer.json")
    try:
        if settings.get("split_special_tokens"):
            raise ValueError("split_special_tokens=true in tokenizer_config.json is not supported: take it out")
        if content is None:
            return load_sentencepiece(folder, files["tokenizer.model"], settings, files.get("added_tokens.json", {}))
        return load_json(folder, settings, content)
    except ValueError as error:
        both = content is not None and "tokenizer.model" in files
        hint = " (without tokenizer.json, tokenizer.model is read)" if both else ""
        raise ValueError(f"{path}: {error}{hint}") from None
    except (LookupError, TypeError, AttributeError, OverflowError) as error:  # a part is absent or of another kind
        said = shown(f"{type(error).__name__}: {error}")
        raise ValueError(f"{path} is malformed, download it again ({said})") from None


def read_files(folder):
    """{name: content} of a folder's or GGUF file's tokenizer: a dict for *.json, bytes for tokenizer.model."""
    if file := find_gguf(folder):
        try:
            return gguf_tokenizer(file, PRE_TOKENIZERS)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    optional = [name for name in TOKENIZER_FILES if name.endswith(".json") and (folder / name).exists()]
    files = {name: read_json(folder / name) for name in optional}
    if (folder / "tokenizer.model").exists():
        files["tokenizer.model"] = read_bytes(folder / "tokenizer.model")
    elif "tokenizer.json" not in files and "vocab.json" in files and (folder / "merges.txt").exists():
        files["tokenizer.json"] = from_older_files(folder, files)
    elif "tokenizer.json" not in files:
        read_json(folder / "tokenizer.json")  # which says that it is missing
    return files


def copy_tokenizer(source, target):
    """Copy the tokenizer's files, and what else goes with a model, from one folder to another.

    All is read as what it says it is before any is written: a name in a folder may be a link to anything. From a GGUF file,
    what the tokenizer's files would be is written.
    """
    files, names = {}, [*TOKENIZER_FILES, *COMPANIONS]
    if find_gguf(source):
        names = COMPANIONS  # tokenizer files beside it are another's, and were not used
        for name, content in read_files(source).items():
            is_json = name.endswith(".json")
            files[name] = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode() if is_json else content
    for path in (Path(source) / name for name in names):
        if path.exists():
            (read_json if path.suffix == ".json" else read_bytes if path.suffix == ".model" else read_text)(path)
            files[path.name] = read_bytes(path)
    for name, content in files.items():
        with atomic(Path(target) / name) as temporary:
            temporary.write_bytes(content)


# --- byte-level BPE ----------------------------------------------------------------------------------------------------

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
# (pre_tokenizer, normalizer) of tokenizer.json, by the names that llama.cpp gives them.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def then_bytes(**step):
    """A pre_tokenizer that cuts with `step` first."""
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL | {"use_regex": step["type"] == "Digits"}]}


LLAMA3, QWEN2 = (
    then_bytes(type="Split", pattern={"Regex": regex}, behavior="Isolated", invert=False) for regex in SPLIT_PATTERNS
)
PRE_TOKENIZERS = {
    "gpt-2": (BYTE_LEVEL, None),
    "smollm": (then_bytes(type="Digits", individual_digits=True), None),
    "llama-bpe": (LLAMA3, None),
    "qwen2": (QWEN2, {"type": "NFC"}),
}
# GPT-2, as tiktoken writes it: pieces equal to those of \s+(?!\S)|\s+ at the end, without the slow backtracking.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SmolLM2: every digit is cut out first, and GPT-2's pattern sees what is between: spaces before a digit end such a part.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
# The tokenizers library cuts out Unicode 17's digits too, which tiktoken's \p{N} does not know.
DIGITS_PATTERN = DIGITS_PATTERN.replace(r"\p{N}", r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]")


def pattern_of(pre_tokenizer):
    """The pattern that cuts text into pieces as this pre_tokenizer does. Raises ValueError for those not known here."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer else None
    kinds = [step.get("type") for step in steps or [pre_tokenizer or {}]]
    last = (steps or [pre_tokenizer or {}])[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True):
        use_regex = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and use_regex:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and use_regex and steps[0].get("individual_digits"):
            return DIGITS_PATTERN
        if kinds == ["Split", "ByteLevel"] and not use_regex:
            regex = steps[0].get("pattern", {}).get("Regex")
            plain = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
            if plain and regex in SPLIT_PATTERNS:
                return SPLIT_PATTERNS[regex]
    raise ValueError(
        f"the pre_tokenizer {shown(pre_tokenizer)} is not supported: known are those of GPT-2, Llama 3, Qwen2 "
        "and SmolLM2, with add_prefix_space=false"
    )


def uses_nfc(normalizer):
    """Whether text is put into Unicode's form C. Raises ValueError for any other normalizer."""
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    for step in steps:
        if step.get("type") != "NFC":
            raise ValueError(f"the normalizer {shown(step.get('type'))} is not supported: known are null and NFC")
    return bool(steps)


def beginning(post_processor, special):
    """The id that the post_processor puts before every text, or None. Raises ValueError where it adds anything else."""
    post_processor = post_processor or {}
    ids = []
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing":
            kinds = [[*item][0] for item in step["single"]]
            if kinds not in (["Sequence"], ["SpecialToken", "Sequence"]):
                raise ValueError("the post_processor adds other tokens than one before a text, which is not supported")
            for item in step["single"][:-1]:
                ids += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        elif step.get("type") not in (None, "ByteLevel"):
            raise ValueError(
                f"the post_processor {shown(step['type'])} is not supported: known are null, ByteLevel and TemplateProcessing"
            )
    if len(ids) > 1:
        raise ValueError("the post_processor adds other tokens than one before a text, which is not supported")
    if not set(ids) <= set(special.values()):
        raise ValueError(f"the post_processor puts the id {ids[0]} before a text, which is not that of an added token")
    return ids[0] if ids else None


def special_tokens_of(added_tokens, normalized):
    """{text: id} of the added tokens. Raises ValueError for options that Tokenizer does not follow.

    normalized: whether the text is normalized, so that tokens found only afterwards ("normalized") would differ.
    """
    for token in added_tokens:
        for option in ("lstrip", "rstrip", "single_word") + (("normalized",) if normalized else ()):
            if token.get(option):
                raise ValueError(f"the added token {shown(token['content'])} has {option}=true, which is not supported")
    # The tokenizers library looks for those with normalized=true where it has found no other: not if they overlap, then.
    early = [token["content"] for token in added_tokens if token["content"] and not token.get("normalized")]
    for late in (token["content"] for token in added_tokens if token.get("normalized")):
        for other in early:
            if other in late or any(other.startswith(late[i:]) for i in range(1, len(late))):
                raise ValueError(f"the added tokens {shown(late)} and {shown(other)} overlap, but only one has normalized=true")
    return {token["content"]: token["id"] for token in added_tokens if token["content"]}


def byte_alphabet():
    """The character that stands for each byte in a tokenizer.json, as {character: byte}.

    Printable bytes stand for themselves; the others, such as the space, for characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


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


def order_of(vocab, merges):
    """{(left, right): its place} of a list of merges."""
    order = {}
    for place, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        for text in (left, right, left + right):
            if text not in vocab:
                raise ValueError(f"the merge of {shown(left)} and {shown(right)} needs {shown(text)}, which is no token")
        order[left, right] = place
    return order


def ranks_of(vocab, order, special, ignore_merges):
    """{token bytes: id}, tiktoken's only table: the id is also the token's priority when merging.

    The file instead lists pairs to merge, in order (order_of). Both give the same ids for every text if they do so for the bytes of
    each token: whichever pair forms a token within a text is the one that forms it from its bytes alone, as all merges
    inside it are the same. So that pair must be listed, and pairs listed in the order of their tokens' ids; other pairs,
    which Llama 3's file lists too, never meet. Raises ValueError where this does not hold.
    ignore_merges: a whole piece that is a token needs no merges, in the file as in tiktoken.
    """
    alphabet = byte_alphabet()
    missing = [byte for character, byte in alphabet.items() if character not in vocab and 0x20 <= byte < 0x7F]
    if missing:
        raise ValueError(f"its vocabulary lacks {chr(min(missing))!r} and perhaps others: not byte-level BPE")
    merged = {left + right for left, right in order}
    # A special token is found before any merging, and has no rank; unless it is a result of merging too.
    ranks = {text: token for text, token in vocab.items() if text not in special or text in merged or text in alphabet}
    for text in ranks:
        if not text or not alphabet.keys() >= set(text):
            raise ValueError(f"the token {shown(text)} is neither made of bytes nor an added token")

    previous = -1
    for text in sorted((text for text in ranks if len(text) > 1), key=ranks.get):
        parts = last_merge(ranks, text)
        if parts not in order:
            if len(parts) > 2 and ignore_merges:
                continue  # only ever a whole piece
            raise ValueError(f"no merge makes the token {shown(text)} in the way that tiktoken would")
        if order[parts] < previous:
            raise ValueError(f"the merge to {shown(text)} comes earlier than its id says: tiktoken merges by id")
        previous = order[parts]
    return {bytes(map(alphabet.get, text)): token for text, token in ranks.items()}


IS_ID = partial(is_whole, low=0, high=SIZE)
SHAPE = {  # of tokenizer.json, as far as it is relied on everywhere
    "model": {"vocab": {...: IS_ID}, "merges": lambda merges: isinstance(merges, list)},
    "added_tokens": or_null([{"id": IS_ID, "content": is_text}]),
}


def load_json(folder, settings, content):
    """The Tokenizer of a tokenizer.json's content and a tokenizer_config.json's settings."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"the model type {shown(model['type'])} is not supported: known is BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ValueError(f"the BPE option {option}={shown(model[option])} is not supported")
    if not fits({"added_tokens": None} | content, SHAPE):
        raise TypeError("vocab, merges or added_tokens are not as they should be")
    of_characters = bool(model.get("byte_fallback"))
    if of_characters:
        prefix, doubled, split = spaces_of(content.get("normalizer"), content.get("pre_tokenizer"))
    else:
        pattern, nfc = pattern_of(content.get("pre_tokenizer")), uses_nfc(content.get("normalizer"))
    if settings.get("add_prefix_space") not in (None, False if not of_characters else prefix != "never"):
        raise ValueError(f"add_prefix_space={shown(settings['add_prefix_space'])} in tokenizer_config.json contradicts it")
    special = special_tokens_of(content.get("added_tokens") or [], normalized=bool(content.get("normalizer")))
    vocab = model["vocab"]
    following = len(vocab)
    for text, token in special.items():  # the tokenizers library numbers them itself, whatever their "id"
        expected = vocab.get(text, following)
        if token != expected:
            raise ValueError(f"the added token {shown(text)} has the id {token}, not {expected}, the next one that is free")
        following = max(following, token + 1)
    if len(set(vocab.values()) | set(special.values())) < len(vocab.keys() | special.keys()):
        raise ValueError("two of its tokens have the same id")
    order = order_of(vocab, model["merges"])
    bos_id, eot_id = beginning(content.get("post_processor"), special), end_of_text(folder, settings, special)
    if of_characters:
        processor = processor_of(model_proto(pieces_of(vocab, order, model)))
        return SentencePieceTokenizer(processor, len(vocab), prefix, doubled, split, special, bos_id, eot_id)
    ranks = ranks_of(vocab, order, special, model.get("ignore_merges", False))
    return BytePairTokenizer(pattern, ranks, nfc, special, bos_id, eot_id)


# What the classes of older files, which have no tokenizer.json, put around their vocabulary.
OLDER_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}  # by the names in PRE_TOKENIZERS


def from_older_files(folder, files):
    """What tokenizer.json would hold (dict), from vocab.json and merges.txt, as GPT-2's and Qwen2's first files are."""
    settings = files.get("tokenizer_config.json", {})
    kind = settings.get("tokenizer_class")
    if kind is None and (folder / "config.json").exists():
        kind = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}.get(str(read_json(folder / "config.json").get("model_type")))
    kind = str(kind).removesuffix("Fast")
    if kind not in OLDER_CLASSES:
        raise ValueError(
            f"{folder} has vocab.json and merges.txt of a {shown(kind)}: make a tokenizer.json with transformers, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    pre_tokenizer, normalizer = PRE_TOKENIZERS[OLDER_CLASSES[kind]]
    lines = read_text(folder / "merges.txt").split("\n")
    vocab, added = files["vocab.json"], added_in(settings, files.get("added_tokens.json", {}))
    for name in ("unk_token", "bos_token", "eos_token", "pad_token"):
        text = token_text(settings.get(name, "<|endoftext|>"))
        if text in vocab and text not in [token["content"] for token in added]:
            added.append({"id": vocab[text], "content": text})
    return {
        "model": {"vocab": vocab, "merges": [line for line in lines if line and not line.startswith("#version")]},
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "pre_tokenizer": pre_tokenizer,
        "normalizer": normalizer,
    }


# --- SentencePiece -----------------------------------------------------------------------------------------------------


def spaces_of(normalizer, pre_tokenizer):
    """(prefix, doubled, split) of SentencePieceTokenizer, from a tokenizer.json. Raises ValueError for any other kind."""
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    kinds = [step.get("type") for step in steps]
    texts = [step.get("prepend") or [step.get("pattern"), step.get("content")] for step in steps]
    replaces = kinds[-1:] == ["Replace"] and texts[-1] == [{"String": " "}, "▁"]
    if pre_tokenizer is None and replaces and (kinds, texts[0]) == (["Prepend", "Replace"], "▁"):
        return "always", True, False
    if pre_tokenizer is None and replaces and len(kinds) == 1:
        return "never", False, False
    if pre_tokenizer and pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("replacement") == "▁":
        prefix = pre_tokenizer.get("prepend_scheme", "always")
        agrees = pre_tokenizer.get("add_prefix_space") in (None, prefix != "never")  # the key's older form
        if not steps and prefix in ("always", "first", "never") and agrees:
            return prefix, False, pre_tokenizer.get("split", True)
    raise ValueError(
        f"the normalizer {shown(normalizer)} with the pre_tokenizer {shown(pre_tokenizer)} is not supported: known beside "
        "byte_fallback are Prepend and Replace alone, and Metaspace alone"
    )


NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of pieces in a tokenizer.model


def pieces_of(vocab, order, model):
    """[(piece, score, kind)] by id for sentencepiece, which merges the pair whose whole has the highest score.

    The file lists pairs instead. As in ranks_of, both give the same ids for every text if they do so for the characters of
    each token; one that sentencepiece cannot make of its own characters is never made, here or there. Raises ValueError
    where they would not.
    """
    if sorted(vocab.values()) != [*range(len(vocab))]:
        raise ValueError("the ids of its vocabulary have gaps, which is not supported beside byte_fallback")
    if model.get("ignore_merges"):
        raise ValueError("ignore_merges=true is not supported beside byte_fallback")
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    if not byte_tokens <= vocab.keys():
        raise ValueError("its vocabulary lacks bytes, though byte_fallback is true")
    ranks = {}  # of what merging makes
    for (left, right), place in order.items():
        if {left, right, left + right} & byte_tokens:
            raise ValueError(f"the merge of {shown(left)} and {shown(right)} has to do with a byte, which is not supported")
        ranks.setdefault(left + right, place)
    previous = -1
    for text in sorted(ranks, key=ranks.get):
        parts = last_merge(ranks, text)
        if len(parts) > 2:
            continue
        if order.get(parts, -1) < previous:
            raise ValueError(f"no merge makes the token {shown(text)} in the way that sentencepiece would")
        previous = order[parts]
    pieces = []
    for text in sorted(vocab, key=vocab.get):
        kind = BYTE if text in byte_tokens else NORMAL if len(text) == 1 or text in ranks else CONTROL
        pieces.append((text, -float(ranks.get(text, 0)), kind))
    return [*pieces, ("the unknown", 0.0, UNKNOWN)]  # which sentencepiece wants, and bytes leave no use for


def field(number, content):
    """A field of a protocol buffer, which is what a tokenizer.model is: an int below 128, a float, or bytes."""

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)

    if isinstance(content, bytes):
        return varint(8 * number + 2) + varint(len(content)) + content
    if isinstance(content, float):
        return varint(8 * number + 5) + struct.pack("<f", content)
    return varint(8 * number) + varint(content)


WITHOUT_PREFIX = field(3, field(3, 0))  # at the end of a tokenizer.model: no add_dummy_prefix, whatever came before


def model_proto(pieces):
    """The bytes of a tokenizer.model with these pieces and nothing done to the text."""
    entries = (field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in pieces)
    trainer = field(3, 2) + field(35, 1)  # BPE, byte_fallback
    normalizer = field(1, b"identity") + field(4, 0) + field(5, 1)  # no space is taken away; it is written as ▁
    return b"".join(field(1, entry) for entry in entries) + field(2, trainer) + field(3, normalizer) + WITHOUT_PREFIX


def processor_of(model):
    """sentencepiece's processor of a tokenizer.model's bytes."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ValueError("this model's tokenizer needs one more package: pip install sentencepiece") from None
    try:
        processor = SentencePieceProcessor(model_proto=model)
        processor.encode("")  # of no model at all, this is what fails
        return processor
    except RuntimeError:
        raise ValueError("it is not a SentencePiece model, download it again") from None


def load_sentencepiece(folder, model, settings, more):
    """The SentencePieceTokenizer of a tokenizer.model's bytes, without a tokenizer.json; more: added_tokens.json."""
    line_break = processor_of(model).encode("\n", out_type=str)
    if line_break != ["▁", "<0x0A>"]:
        raise ValueError(
            f"it makes {shown(line_break)} of a line break, which is not supported: known are models that put a "
            "space before a text (add_dummy_prefix), change nothing else, and have byte_fallback"
        )
    processor = processor_of(model + WITHOUT_PREFIX)  # the space is for encode_ordinary to put
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    special = {piece: i for i, piece in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)}
    for text, i in special_tokens_of(added_in(settings, more), normalized=False).items():
        if not IS_ID(i) or (i < len(pieces) and pieces[i] != text and special.get(pieces[i]) != i):
            raise ValueError(f"the added token {shown(text)} has the id {shown(i)}, which it cannot have")
        special[text] = i
    if settings.get("add_eos_token"):
        raise ValueError("add_eos_token=true in tokenizer_config.json is not supported: texts end where they end")
    bos_id = None
    if settings.get("add_bos_token", True):
        bos = token_text(settings.get("bos_token")) or "<s>"
        if bos not in special:
            raise ValueError(f"texts are to begin with {shown(bos)}, which is not among the added tokens: set add_bos_token")
        bos_id = special[bos]
    prefix = "always" if settings.get("legacy") else "first"  # transformers' word for a space after special tokens too
    eot_id = end_of_text(folder, settings, special)
    return SentencePieceTokenizer(processor, len(pieces), prefix, True, False, special, bos_id, eot_id)


# --- conventions -------------------------------------------------------------------------------------------------------


def added_in(settings, more):
    """The added tokens of tokenizer_config.json and of added_tokens.json ({text: id}), as tokenizer.json lists them."""
    added = [token | {"id": int(i)} for i, token in settings.get("added_tokens_decoder", {}).items()]
    known = {token["content"]: token["id"] for token in added}
    for text, i in more.items():
        if known.get(text, i) != i:
            raise ValueError(f"added_tokens.json and tokenizer_config.json give the token {shown(text)} two ids")
    return added + [{"content": text, "id": i} for text, i in more.items() if text not in known]


def token_text(token):
    """The text of a special token as tokenizer_config.json gives it: a string, or an object with its options."""
    return token.get("content") if isinstance(token, dict) else token


def end_of_text(folder, settings, special):
    """The id that ends a document: eos_token of tokenizer_config.json, else eos_token_id of config.json, else <|endoftext|>."""
    text = token_text(settings.get("eos_token"))
    if text is not None:
        if text not in special:
            raise ValueError(f"tokenizer_config.json has the eos_token {shown(text)}, which is not among the added tokens")
        return special[text]
    path = Path(folder) / "config.json"
    eos = read_json(path).get("eos_token_id") if path.exists() else None
    if eos is not None:
        first = eos[0] if isinstance(eos, list) and eos else eos
        if not IS_ID(first) or first not in special.values():
            raise ValueError(f"config.json has the eos_token_id {shown(eos)}, which is not the id of an added token")
        return first
    if "<|endoftext|>" not in special:
        raise ValueError(f"{folder} names no end-of-text token: set eos_token in tokenizer_config.json")
    return special["<|endoftext|>"]
