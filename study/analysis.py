"""What a method changed: where its dW lies beside W, how much it amplifies there, and how far predictions on old text moved.

The measures are MiLoRA's (arXiv 2406.09044, its analysis of the learned change), and one more, the share of dW that falls
on each of W's singular directions. Everything is read off a finished model; nothing here trains.
"""

import torch

from corpus import IGNORE, pack
from lora import LoRALayer

BINS = 24  # of W's singular directions, largest values first; at width 192 a bin is 8 directions


def changes(base, model):
    """{name: (W, dW)}, both (out, in) in float64, of the linears in the blocks of `base` that `model` has changed."""
    found = {}
    for name, linear in base.layers.named_modules():
        if isinstance(linear, torch.nn.Linear):
            now, W = model.layers.get_submodule(name), linear.weight.detach().cpu().double()  # mps has no float64
            dW = now.delta().cpu().double() if isinstance(now, LoRALayer) else now.weight.detach().cpu().double() - W
            if dW.any():
                found[name] = W, dW
    return found


def amplification(W, dW, U, V):
    """||U^T dW V||_F / ||U^T W V||_F, with U and V the first singular vectors of dW (arXiv 2406.09044).

    How many times larger the change is than what W itself does between the same directions.
    """
    return ((U.T @ dW @ V).norm() / (U.T @ W @ V).norm()).item()


def similarity(A, B):
    """||A^T B||_F^2 / r of two orthonormal bases (n, r): 1 for the same subspace, 0 for orthogonal ones, r / n by chance."""
    return ((A.T @ B).norm() ** 2 / A.shape[1]).item()


def shares(vectors, dW):
    """The share of ||dW||_F^2 on each bin of `vectors` (n, k), orthonormal columns: (BINS,); they add up to at most 1."""
    energy = (vectors.T @ dW).square().sum(1) / dW.square().sum()  # (k,)
    return torch.stack([part.sum() for part in energy.tensor_split(BINS)])


def landing(base, model, rank):
    """Where the change of each linear lies, averaged over all: a dict that JSON can hold.

    left, right: `shares` of dW on W's left (output) and right (input) singular vectors, largest singular values first.
    projections: for q_proj and so on, the amplification, and the similarity of dW's `rank` first left and right singular
    vectors with W's `rank` largest ("major") and smallest ("minor") ones. Numbers are rounded to 6 significant digits.
    None where nothing has changed, or where training diverged.
    """
    found = changes(base, model)
    if not found or not all(dW.isfinite().all() for _, dW in found.values()):
        return None
    left, right, projections = [], [], {}
    for name, (W, dW) in found.items():
        U, _, Vh = torch.linalg.svd(W, full_matrices=False)
        dU, _, dVh = torch.linalg.svd(dW, full_matrices=False)
        dU, dV, V = dU[:, :rank], dVh[:rank].T, Vh.T
        left.append(shares(U, dW))
        right.append(shares(V, dW.T))
        measured = {
            "amplification": amplification(W, dW, dU, dV),
            "left_major": similarity(dU, U[:, :rank]),
            "left_minor": similarity(dU, U[:, -rank:]),
            "right_major": similarity(dV, V[:, :rank]),
            "right_minor": similarity(dV, V[:, -rank:]),
        }
        projections.setdefault(name.rpartition(".")[2], []).append(measured)

    def mean(values):
        return float(f"{sum(values) / len(values):.6g}")

    return {
        "left": [mean(column) for column in zip(*torch.stack(left).tolist())],
        "right": [mean(column) for column in zip(*torch.stack(right).tolist())],
        "projections": {
            name: {key: mean([one[key] for one in some]) for key in some[0]} for name, some in projections.items()
        },
    }


@torch.inference_mode()
def forgetting_loss(base, model, tokenizer, documents, seq_len=128, batch_size=16):
    """Cross-entropy of the model's predictions against the base's, nats a token of `documents` (arXiv 2406.09044).

    It asks for the base's whole distribution, not for the text: the base itself has its own entropy, the least there is.
    """
    seq_len = min(seq_len, base.config.context_length)
    inputs, targets = pack([tokenizer.encode(d) for d in documents], tokenizer.eot_id, seq_len, tokenizer.bos_id)
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size)):
        counts = (y != IGNORE).to(base.device)
        expected = base(x.to(base.device))[counts].float().softmax(-1)  # (n, vocab)
        predicted = model(x.to(base.device))[counts].float().log_softmax(-1)
        total -= (expected * predicted).cpu().double().sum()
    return (total / (targets != IGNORE).sum()).item()
