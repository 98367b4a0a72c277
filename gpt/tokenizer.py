"""Text <-> token ids: a tiktoken encoding built from the tokenizer.json that comes with open weights.

Reading order: load_tokenizer at the end of the file, then the checks it makes, then Tokenizer.

Byte-level BPE in three steps: a pattern cuts the text into pieces (roughly words with their leading space), the UTF-8
bytes of each piece are its first tokens, and neighbouring tokens are merged, most frequent pair first, as long as the
file knows a merge for them. Special tokens such as <|endoftext|> are found in the text before all that.
"""

import json
from itertools import pairwise
from pathlib import Path

import tiktoken

# GPT-2's pattern as tiktoken writes it: pieces equal to those of \s+(?!\S)|\s+, without the slow backtracking.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Tokenizer:
    """A tiktoken encoding and the id of its end-of-text token.

    eot_id: the id that ends a document. vocab_size: the largest id + 1, which the model's vocabulary must hold.
    """

    def __init__(self, encoding, eot_id):
        self.encoding, self.eot_id = encoding, eot_id
        self.vocab_size = encoding.n_vocab
        self._ids = set(encoding._mergeable_ranks.values()) | set(encoding._special_tokens.values())

    def encode(self, text):
        """Token ids (list of int) of a text. Special tokens spelled out in the text become their ids; none are added."""
        return self.encoding.encode(text, allowed_special="all")

    def decode(self, ids):
        """The text of token ids. Incomplete UTF-8 becomes U+FFFD; ids that no token has (a padded vocabulary) are skipped."""
        return self.encoding.decode([token for token in map(int, ids) if token in self._ids])


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


def byte_alphabet():
    """The character that stands for each byte in a tokenizer.json, as {character: byte}.

    Printable bytes stand for themselves; the others, such as the space, for characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def pattern_of(pre_tokenizer):
    """The pattern that cuts text into pieces as this pre_tokenizer does. Raises ValueError for those not known here.

    A new style is one more `if` that returns its pattern.
    """
    pre_tokenizer = pre_tokenizer or {}
    kind = pre_tokenizer.get("type")
    if kind == "ByteLevel" and pre_tokenizer.get("use_regex", True) and not pre_tokenizer.get("add_prefix_space", True):
        return GPT2_PATTERN
    raise ValueError(
        f"the pre_tokenizer {json.dumps(pre_tokenizer)[:200]} is not supported: known is ByteLevel with use_regex=true "
        "and add_prefix_space=false (GPT-2's)"
    )


def special_tokens_of(added_tokens):
    """{text: id} of the added tokens. Raises ValueError for options that tiktoken would not follow."""
    for token in added_tokens:
        for option in ("lstrip", "rstrip", "single_word"):
            if token.get(option):
                raise ValueError(f"the added token {token['content']!r} has {option}=true, which is not supported")
    special = {token["content"]: token["id"] for token in added_tokens}
    for shorter, longer in pairwise(sorted(special)):
        if longer.startswith(shorter):  # which of the two wins would be left to chance
            raise ValueError(f"the added token {shorter!r} begins another one, {longer!r}, which is not supported")
    return special


def last_merge(ranks, token):
    """The two tokens that the last merge joins when the bytes of `token` are merged, lowest rank first; or what is left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks) + 256**2) for a, b in pairwise(parts)]
        best = min(joined)
        at = joined.index(best)
        if best >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def ranks_of(vocab, merges, special):
    """{token bytes: id}, tiktoken's only table: the id is also the token's priority when merging.

    Raises ValueError where the merges of the file would give other ids than that table.
    """
    alphabet = byte_alphabet()
    missing = [byte for character, byte in alphabet.items() if character not in vocab]
    if missing:
        raise ValueError(
            f"its vocabulary lacks {len(missing)} of the 256 bytes, e.g. {missing[0]:#04x}: not byte-level BPE"
        )
    ranks = {bytes([byte]): vocab[character] for character, byte in alphabet.items()}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]

    used = set(alphabet)
    previous = -1
    for left, right in pairs:
        if left not in used or right not in used or left + right not in vocab:
            raise ValueError(f"the merge of {left!r} and {right!r} uses a token that does not exist at that point")
        if vocab[left + right] <= previous:
            raise ValueError(f"the merge of {left!r} and {right!r} comes later than its id says: tiktoken merges by id")
        previous = vocab[left + right]
        used.add(left + right)
        ranks[bytes(alphabet[c] for c in left + right)] = previous
    for left, right in pairs:
        left, right = (bytes(alphabet[c] for c in token) for token in (left, right))
        if last_merge(ranks, left + right) != [left, right]:
            raise ValueError(
                f"the merge of {left!r} and {right!r} is not the one that tiktoken would make for its token"
            )

    unknown = [token for token in vocab if token not in used and token not in special]
    if unknown:
        raise ValueError(f"the token {unknown[0]!r} is neither a byte, nor the result of a merge, nor an added token")
    return ranks


def end_of_text(folder, special):
    """The id that ends a document: eos_token of tokenizer_config.json, else eos_token_id of config.json, else <|endoftext|>."""
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    eos = read_json(path).get("eos_token") if path.exists() else None
    if eos is not None:
        text = eos.get("content") if isinstance(eos, dict) else eos
        if text not in special:
            raise ValueError(
                f"{path} has the eos_token {text!r}, which is not among the added tokens of tokenizer.json"
            )
        return special[text]
    path = folder / "config.json"
    eos = read_json(path).get("eos_token_id") if path.exists() else None
    if eos is not None:
        first = eos[0] if isinstance(eos, list) and eos else eos
        if first not in special.values():
            raise ValueError(
                f"{path} has the eos_token_id {eos}, which is not the id of an added token of tokenizer.json"
            )
        return first
    if "<|endoftext|>" not in special:
        raise ValueError(f"{folder} names no end-of-text token: set eos_token in tokenizer_config.json")
    return special["<|endoftext|>"]


def load_tokenizer(folder):
    """The Tokenizer of a folder with tokenizer.json (byte-level BPE); its ids equal those of the tokenizers library.

    Raises FileNotFoundError without the file, ValueError when it is malformed or asks for what is not supported here.
    """
    path = Path(folder) / "tokenizer.json"
    content = read_json(path)
    try:
        model = content["model"]
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"the model type {model['type']!r} is not supported: known is BPE")
        for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise ValueError(f"the BPE option {option}={model[option]!r} is not supported")
        if content.get("normalizer"):
            raise ValueError(f"the normalizer {content['normalizer'].get('type')!r} is not supported: known is null")
        post = (content.get("post_processor") or {}).get("type")
        if post not in (None, "ByteLevel"):
            raise ValueError(
                f"the post_processor {post!r} is not supported: known are null and ByteLevel, which add no tokens"
            )
        pattern = pattern_of(content.get("pre_tokenizer"))
        special = special_tokens_of(content.get("added_tokens") or [])
        vocab = model["vocab"]
        text_of = {token: text for text, token in vocab.items()}
        if len(text_of) < len(vocab) or any(text_of.get(token, text) != text for text, token in special.items()):
            raise ValueError("two of its tokens have the same id")
        ranks = ranks_of(vocab, model["merges"], special)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:  # a part is absent or of another kind
        raise ValueError(f"{path} is malformed, download it again ({type(error).__name__}: {error})") from None
    encoding = tiktoken.Encoding(Path(folder).name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(encoding, end_of_text(folder, special))
