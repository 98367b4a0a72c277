"""The loss of a model with a large, frozen head, without ever holding the logits of all tokens; and any loss, compiled.

The plain version is train.next_token_loss: all logits (tokens, vocab), then F.cross_entropy; a test holds this one
against it. With 50,000 words of vocabulary and more, the logits, their log-softmax and its gradient are the largest
tensors of a training step by far, and each is written to memory and read back several times.

How: nothing is learned in the head, so of a chunk of tokens only two things are needed: the loss, and the gradient
with respect to the hidden states, (softmax(logits) - one_hot(target)) W. Both come from the same exponentials, so the
gradient is taken at once, and the chunk's logits are gone before the next chunk's are made. The idea is that of Cut
Your Losses (arXiv 2411.09009) and Liger Kernel (arXiv 2410.10989).
"""

import math
from contextlib import nullcontext

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LARGE = 2**14  # words: from here on it pays; below, the plain version is as quick and leaves every bit as it was
CHUNK = 2**25  # logits held at once, at most: 128 MB in float32


def head_is_large_and_frozen(head):
    """Whether loss_in_chunks is for this head: an nn.Linear without bias or adapter, frozen, of a large vocabulary."""
    plain = type(head) is nn.Linear and head.bias is None
    return plain and not head.weight.requires_grad and head.out_features >= LARGE


def loss_in_chunks(hidden, weight, targets, ignore):
    """Cross-entropy, in nats, of the logits hidden W^T, the sum over all: a scalar in float32 (float64 for float64).

    hidden: (..., hidden), the only thing a gradient is taken for; weight: W (vocab, hidden), the frozen head's; targets:
    (...), ids, or `ignore` where nothing is asked. Inside autocast the two products are made in its dtype, as a head's
    would be.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
    return LossInChunks.apply(hidden.flatten(0, -2), weight.detach(), targets.flatten(), ignore)


class LossInChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, ignore):
        dtype = torch.promote_types(weight.dtype, torch.float32)  # of what is neither hidden states nor weights
        nothing = (targets == ignore)[:, None]  # (tokens, 1)
        targets = targets[:, None].masked_fill(nothing, 0)  # (tokens, 1), all of them ids
        chunks = max(1, math.ceil(len(hidden) * len(weight) / CHUNK))
        losses, gradients = [], []
        for h, target in zip(hidden.chunk(chunks), targets.chunk(chunks)):
            logits = F.linear(h, weight).to(dtype)  # (chunk, vocab)
            top = logits.amax(dim=1, keepdim=True)  # taken off, so that no exponential overflows
            right = logits.gather(1, target) - top  # (chunk, 1)
            exps = logits.sub_(top).exp_()  # where the logits were
            total = exps.sum(dim=1, keepdim=True)  # softmax is exps / total
            losses.append(total.log() - right)
            exps.scatter_add_(1, target, -total)  # (softmax - one_hot) * total
            gradients.append((exps.to(weight.dtype) @ weight / total).to(h.dtype))
        ctx.save_for_backward(torch.cat(gradients).masked_fill_(nothing, 0))  # (tokens, hidden)
        return torch.cat(losses).masked_fill_(nothing, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        (gradient,) = ctx.saved_tensors
        return (gradient.to(above.dtype) * above).to(gradient.dtype), None, None, None


def kl_in_chunks(hidden, untouched, weight, targets, ignore):
    """KL(untouched || model), in nats, the sum over tokens: as loss_in_chunks, for the predictions of two hidden states.

    hidden: (..., hidden), the model's, the only thing a gradient is taken for; untouched: the same shape, of the model
    before it was trained; weight: W (vocab, hidden), the head of both; targets: (...), `ignore` where nothing is asked.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, untouched, weight = hidden.to(dtype), untouched.to(dtype), weight.to(dtype)
    asked = (targets != ignore).flatten()
    hidden, untouched = hidden.flatten(0, -2)[asked], untouched.flatten(0, -2)[asked]
    return KLInChunks.apply(hidden, untouched.detach(), weight.detach())


class KLInChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, untouched, weight):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        total, gradients = hidden.new_zeros((), dtype=dtype), []
        chunks = max(1, math.ceil(2 * len(hidden) * len(weight) / CHUNK))
        for h, u in zip(hidden.chunk(chunks), untouched.chunk(chunks)):
            q = F.linear(h, weight).to(dtype).log_softmax(-1)  # (chunk, vocab), the model's log-probabilities
            p = F.linear(u, weight).to(dtype).log_softmax(-1)  # the untouched model's
            difference = p - q
            p, q = p.exp_(), q.exp_()
            total += torch.dot(p.flatten(), difference.flatten())
            gradients.append((q.sub_(p).to(weight.dtype) @ weight).to(h.dtype))  # (q - p) W
        ctx.save_for_backward(torch.cat(gradients) if gradients else hidden)  # (tokens, hidden)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        (gradient,) = ctx.saved_tensors
        return (gradient.to(above.dtype) * above).to(gradient.dtype), None, None


def mixed_precision(model):
    """A context in which a float32 model computes in bfloat16 where that is the custom: on NVIDIA's GPUs only."""
    mixed = model.device.type == "cuda" and next(model.parameters()).dtype == torch.float32
    return torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()


def compiled(loss_of, device):
    """torch.compile(loss_of): the same to rounding, its many small operations fused into few.

    The first call takes a minute for 30 blocks, and so does the first of another shape, such as an epoch's last batch.
    Raises ValueError where nothing can be compiled for `device`: on a CPU it takes a C++ compiler, on a GPU Triton.
    """
    torch.compiler.reset()  # what was compiled for an earlier model: only a few versions of a function are kept
    try:  # with something small
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds, each with pages of text
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"--compile cannot compile for {device} here ({reason}): leave it out") from None
    return torch.compile(loss_of)
