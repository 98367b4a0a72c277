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
import unicodedata
from itertools import pairwise
from pathlib import Path

import tiktoken

from gpt.gguf import find_gguf, gguf_tokenizer
from tools.cli import atomic

# A model's files that say how its text becomes tokens.
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"]


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
    """A tokenizer.model through the sentencepiece package.

    A space is part of the word after it, so the first word of a text gets one too; decode takes it off again.
    prefix_all: whether the text after a special token also gets that space.
    """

    def __init__(self, processor, prefix_all, special, bos_id, eot_id):
        super().__init__(special, bos_id, eot_id, max([processor.vocab_size() - 1, *special.values()]) + 1)
        self.processor, self.prefix_all = processor, prefix_all
        self._line_break = processor.encode("\n")

    def encode_ordinary(self, text, first):
        text = text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # half a character: U+FFFD, as tiktoken
        if first or self.prefix_all:
            return self.processor.encode(text)
        # The package always adds the space. No token holds a line break and more: cut off one in front, space and all.
        return self.processor.encode("\n" + text)[len(self._line_break) :]

    def ordinary_bytes(self, token):
        if not 0 <= token < self.processor.vocab_size():
            return b""
        piece = self.processor.id_to_piece(token)
        if self.processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace("▁", " ").encode()

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def read_json(path):
    """The JSON object in a file. Raises FileNotFoundError or ValueError with one sentence that names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: give a folder with config.json, tokenizer.json and *.safetensors files"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # malformed JSON or UTF-8
        raise ValueError(f"{path} is not valid JSON, download it again ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object, download it again")
    return content


def load_tokenizer(folder):
    """The Tokenizer of a folder; its ids equal those of the tokenizers library, or of sentencepiece.

    tokenizer.json is read where it holds byte-level BPE, else tokenizer.model.
    Raises FileNotFoundError without these files, ValueError when they are malformed or ask for what is not supported here,
    and when sentencepiece is needed and not installed.
    """
    folder = Path(folder)
    files = read_files(folder)
    settings, content = files.get("tokenizer_config.json", {}), files.get("tokenizer.json")
    path = find_gguf(folder) or folder / ("tokenizer.model" if content is None else "tokenizer.json")
    try:
        if content is None or content["model"].get("byte_fallback"):  # SentencePiece's BPE; the json has it converted
            return load_sentencepiece(folder, files.get("tokenizer.model"), settings, content or {})
        return load_byte_pairs(folder, settings, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, OverflowError) as error:  # a part is absent or of another kind
        raise ValueError(f"{path} is malformed, download it again ({type(error).__name__}: {error})") from None


def read_files(folder):
    """{name: content} of a folder's or GGUF file's tokenizer: a dict for *.json, bytes for tokenizer.model."""
    if file := find_gguf(folder):
        try:
            return gguf_tokenizer(file, PRE_TOKENIZERS)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    files, model = {}, folder / "tokenizer.model"
    if (folder / "tokenizer_config.json").exists():
        files["tokenizer_config.json"] = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").exists() or not model.exists():
        files["tokenizer.json"] = read_json(folder / "tokenizer.json")
    if model.exists():
        files["tokenizer.model"] = model.read_bytes()
    return files


def copy_tokenizer(source, target):
    """Copy the tokenizer's files from one model's folder to another; from a GGUF file, write what they would be."""
    if find_gguf(source):
        files = read_files(source)
        texts = {name: json.dumps(files[name], ensure_ascii=False, indent=1) + "\n" for name in files if "json" in name}
        files |= {name: text.encode() for name, text in texts.items()}
    else:
        paths = [Path(source) / name for name in TOKENIZER_FILES]
        files = {path.name: path.read_bytes() for path in paths if path.exists()}
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
        f"the pre_tokenizer {json.dumps(pre_tokenizer)[:600]} is not supported: known are those of GPT-2, Llama 3, Qwen2 "
        "and SmolLM2, with add_prefix_space=false"
    )


def uses_nfc(normalizer):
    """Whether text is put into Unicode's form C. Raises ValueError for any other normalizer."""
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    for step in steps:
        if step.get("type") != "NFC":
            raise ValueError(f"the normalizer {step.get('type')!r} is not supported: known are null and NFC")
    return bool(steps)


def beginning(post_processor, special):
    """The id that the post_processor puts before every text, or None. Raises ValueError where it adds anything else."""
    post_processor = post_processor or {}
    ids = []
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing":
            kinds = [next(iter(item)) for item in step["single"]]
            if kinds not in (["Sequence"], ["SpecialToken", "Sequence"]):
                raise ValueError("the post_processor adds other tokens than one before a text, which is not supported")
            for item in step["single"][:-1]:
                ids += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        elif step.get("type") not in (None, "ByteLevel"):
            raise ValueError(
                f"the post_processor {step['type']!r} is not supported: known are null, ByteLevel and TemplateProcessing"
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
                raise ValueError(f"the added token {token['content']!r} has {option}=true, which is not supported")
    # The tokenizers library looks for those with normalized=true where it has found no other: not if they overlap, then.
    early = [token["content"] for token in added_tokens if token["content"] and not token.get("normalized")]
    for late in (token["content"] for token in added_tokens if token.get("normalized")):
        for other in early:
            if other in late or any(other.startswith(late[i:]) for i in range(1, len(late))):
                raise ValueError(f"the added tokens {late!r} and {other!r} overlap, but only one has normalized=true")
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


def ranks_of(vocab, merges, special, ignore_merges):
    """{token bytes: id}, tiktoken's only table: the id is also the token's priority when merging.

    The file instead lists pairs to merge, in order. Both give the same ids for every text if they do so for the bytes of
    each token: whichever pair forms a token within a text is the one that forms it from its bytes alone, as all merges
    inside it are the same. So that pair must be listed, and pairs listed in the order of their tokens' ids; other pairs,
    which Llama 3's file lists too, never meet. Raises ValueError where this does not hold.
    ignore_merges: a whole piece that is a token needs no merges, in the file as in tiktoken.
    """
    alphabet = byte_alphabet()
    missing = [byte for character, byte in alphabet.items() if character not in vocab and 0x20 <= byte < 0x7F]
    if missing:
        raise ValueError(f"its vocabulary lacks {chr(min(missing))!r} and perhaps others: not byte-level BPE")
    order = {}  # (left, right) -> its place in the list
    for place, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        for text in (left, right, left + right):
            if text not in vocab:
                raise ValueError(f"the merge of {left!r} and {right!r} needs {text!r}, which is no token")
        order[left, right] = place
    merged = {left + right for left, right in order}
    # A special token is found before any merging, and has no rank; unless it is a result of merging too.
    ranks = {text: token for text, token in vocab.items() if text not in special or text in merged or text in alphabet}
    for text in ranks:
        if not text or not alphabet.keys() >= set(text):
            raise ValueError(f"the token {text!r} is neither made of bytes nor an added token")

    previous = -1
    for text in sorted((text for text in ranks if len(text) > 1), key=ranks.get):
        parts = last_merge(ranks, text)
        if parts not in order:
            if len(parts) > 2 and ignore_merges:
                continue  # only ever a whole piece
            raise ValueError(f"no merge makes the token {text!r} in the way that tiktoken would")
        if order[parts] < previous:
            raise ValueError(f"the merge to {text!r} comes earlier than its id says: tiktoken merges by id")
        previous = order[parts]
    return {bytes(map(alphabet.get, text)): token for text, token in ranks.items()}


def load_byte_pairs(folder, settings, content):
    """The BytePairTokenizer of a tokenizer.json's content and a tokenizer_config.json's settings."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"the model type {model['type']!r} is not supported: known is BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ValueError(f"the BPE option {option}={model[option]!r} is not supported")
    pattern = pattern_of(content.get("pre_tokenizer"))
    nfc = uses_nfc(content.get("normalizer"))
    special = special_tokens_of(content.get("added_tokens") or [], nfc)
    vocab = model["vocab"]
    following = len(vocab)
    for text, token in special.items():  # the tokenizers library numbers them itself, whatever their "id"
        expected = vocab.get(text, following)
        if token != expected:
            raise ValueError(f"the added token {text!r} has the id {token}, not {expected}, the next one that is free")
        following = max(following, token + 1)
    if len(set(vocab.values()) | set(special.values())) < len(vocab.keys() | special.keys()):
        raise ValueError("two of its tokens have the same id")
    ranks = ranks_of(vocab, model["merges"], special, model.get("ignore_merges", False))
    bos_id = beginning(content.get("post_processor"), special)
    return BytePairTokenizer(pattern, ranks, nfc, special, bos_id, end_of_text(folder, settings, special))


# --- SentencePiece -----------------------------------------------------------------------------------------------------


def load_sentencepiece(folder, model, settings, content):
    """The SentencePieceTokenizer of tokenizer.model's bytes.

    Special tokens come from tokenizer.json's content, where there is one, else from tokenizer_config.json's settings.
    """
    if model is None:
        raise ValueError("it is a SentencePiece tokenizer, for which tokenizer.model is needed too: download that")
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ValueError("this model's tokenizer needs one more package: pip install sentencepiece") from None
    try:
        processor = SentencePieceProcessor(model_proto=model)
        line_break = processor.encode("\n", out_type=str)
    except RuntimeError:
        raise ValueError("tokenizer.model is not a SentencePiece model, download it again") from None
    if line_break != ["▁", "<0x0A>"]:
        raise ValueError(
            f"tokenizer.model makes {line_break} of a line break, which is not supported: known are models that put a "
            "space before a text (add_dummy_prefix), change nothing else, and have byte_fallback"
        )

    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    special = {piece: i for i, piece in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)}
    added = content.get("added_tokens") or [
        token | {"id": int(i)} for i, token in settings.get("added_tokens_decoder", {}).items()
    ]
    for text, i in special_tokens_of(added, normalized=False).items():
        if i < len(pieces) and pieces[i] != text and special.get(pieces[i]) != i:
            raise ValueError(f"the added token {text!r} has the id {i}, which is that of {pieces[i]!r}")
        special[text] = i
    # "legacy" is transformers' word for a space after special tokens too.
    prefix_all = bool(settings.get("legacy"))
    if not prefix_all and any("\n" in piece for piece in pieces):
        raise ValueError("tokenizer.model has tokens with line breaks, which is not supported without legacy=true")
    if settings.get("add_eos_token") and not content:
        raise ValueError("add_eos_token=true in tokenizer_config.json is not supported: texts end where they end")
    bos_id = None
    if content:
        bos_id = beginning(content.get("post_processor"), special)
    elif settings.get("add_bos_token", True):
        bos = token_text(settings.get("bos_token")) or "<s>"
        if bos not in special:
            raise ValueError(f"texts are to begin with {bos!r}, which is not among the added tokens: set add_bos_token")
        bos_id = special[bos]
    return SentencePieceTokenizer(processor, prefix_all, special, bos_id, end_of_text(folder, settings, special))


# --- conventions -------------------------------------------------------------------------------------------------------


def token_text(token):
    """The text of a special token as tokenizer_config.json gives it: a string, or an object with its options."""
    return token.get("content") if isinstance(token, dict) else token


def end_of_text(folder, settings, special):
    """The id that ends a document: eos_token of tokenizer_config.json, else eos_token_id of config.json, else <|endoftext|>."""
    text = token_text(settings.get("eos_token"))
    if text is not None:
        if text not in special:
            raise ValueError(f"tokenizer_config.json has the eos_token {text!r}, which is not among the added tokens")
        return special[text]
    path = Path(folder) / "config.json"
    eos = read_json(path).get("eos_token_id") if path.exists() else None
    if eos is not None:
        first = eos[0] if isinstance(eos, list) and eos else eos
        if first not in special.values():
            raise ValueError(f"config.json has the eos_token_id {eos}, which is not the id of an added token")
        return first
    if "<|endoftext|>" not in special:
        raise ValueError(f"{folder} names no end-of-text token: set eos_token in tokenizer_config.json")
    return special["<|endoftext|>"]
