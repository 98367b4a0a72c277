"""A small decoder-only language model that loads open weights: model, weights, tokenizer, generation."""

from gpt.generate import generate
from gpt.hub import find_model
from gpt.model import GPT, GPTConfig, KVCache
from gpt.tokenizer import Tokenizer, load_tokenizer
from gpt.weights import load_pretrained, save_pretrained

__all__ = [
    "GPT",
    "GPTConfig",
    "KVCache",
    "Tokenizer",
    "find_model",
    "generate",
    "load_pretrained",
    "load_tokenizer",
    "save_pretrained",
]
