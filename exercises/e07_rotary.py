"""Exercise 7: rotary positions. Attention learns how far apart two words are by turning pairs of numbers.

Goal: turn queries and keys by angles that grow with their position, in Hugging Face's half-split convention; and
convert a weight that was trained in Meta's, which pairs neighbours.

    a' = a cos - b sin,  b' = b cos + a sin                     RoFormer, arXiv 2104.09864, eq. 13 to 15
    half-split:   x = [ a0 a1 a2 | b0 b1 b2 ]                   interleaved:  x = [ a0 b0 | a1 b1 | a2 b2 ]
    Picture: pictures/rotary.png

Shapes: x (batch, heads, time, head_dim); cos and sin (time, head_dim) or (batch, 1, time, head_dim), in which the
angles of the pairs 0, 1, 2 stand twice: [ 0 1 2 | 0 1 2 ]. x may be bfloat16 with float32 cos and sin; the result has
x's dtype. A weight is (heads * head_dim, in), the rows of one head after those of another.

Measure before you look on: no tensor's shape objects if the conventions are mixed up. Does the shipped model then
talk nonsense, or how many of the questions it was trained on does it still answer?  python -m exercises 7 --measure
"""

import torch

import eval_qa
from exercises import NotWritten
from exercises.measuring import ROOT, base_model
from questions import read_questions


def rotate(x, cos, sin):
    """Queries or keys, half-split, turned by their positions' angles; as large as x and of its dtype."""
    raise NotWritten


def from_interleaved(weight, heads):
    """The weight (heads * head_dim, in) of a q_proj or k_proj from the interleaved to the half-split convention."""
    raise NotWritten


def measure():
    model, tokenizer = base_model()
    head_dim = model.config.head_dim
    questions = read_questions(ROOT / "data/old/asked.jsonl")

    def right():
        return 100 * eval_qa.summarise(eval_qa.score_questions(model, tokenizer, questions))["acc"]

    print(f"the shipped weights, half-split, in a half-split model: {right():.1f}% of old/asked right")
    projections = [p for layer in model.layers for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)]
    with torch.no_grad():
        for projection in projections:  # half-split to interleaved: a0 b0 a1 b1 ...
            heads = projection.weight.unflatten(0, (-1, 2, head_dim // 2))  # (heads, a or b, pairs, in)
            projection.weight.copy_(heads.transpose(1, 2).flatten(0, 2))
        print(f"the same, stored interleaved, in a half-split model: {right():.1f}%")
        for projection in projections:
            projection.weight.copy_(from_interleaved(projection.weight, model.config.n_heads))
        print(f"converted by from_interleaved: {right():.1f}%")
