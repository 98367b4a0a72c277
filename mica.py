"""MiCA, Minor Component Adaptation (arXiv 2604.01694): LoRA that writes only where the weight writes least.

Read lora.py first. MiCA is the same layer with another start: B is a fixed set of directions taken from the weight
itself, A starts at zero and is all that is trained. Below it are its ablations, which ask what of that matters, and
the search for the directions.
"""

import torch

from lora import LoRALayer, check_rank, factor_dtype


class MiCALayer(LoRALayer):
    """LoRA with B = U[:, -rank:] of W = U S V^T, frozen, and A = 0, trained (arXiv 2604.01694).

    Why the minor directions: large singular values carry what the model does with most inputs. Directions of the
    output that W hardly uses have room for something new, with the least disturbance of what is there.
    Why B is frozen: a trained B would drift away from these directions, and nothing would hold the update in them.
    So B is a buffer: it can be neither optimised nor decayed. It also leaves only rank * in numbers to train.
    Why A = 0: the product B A is zero, so the model starts out unchanged and nothing is subtracted from W. Training
    still starts at once: A's gradient is B^T times the output's gradient, and B is not zero. (With both factors zero
    both gradients would be zero, for ever.)
    Load the model's weights first: B is computed when the layer is made, and the minor directions of a randomly
    initialised weight say nothing about the pretrained one.
    """

    trained = ("A",)

    def initial_factors(self, W):
        return torch.zeros(self.rank, W.shape[1]), self.directions(W)

    def directions(self, W):
        """B, (out, rank) with orthonormal columns."""
        return minor_subspace(W, self.rank)


# --- ablations: MiCA with one thing changed ---


class MajorMiCALayer(MiCALayer):
    """B from the other end, the singular vectors of the largest singular values: is it the *minor* ones that matter?"""

    def directions(self, W):
        return major_components(W, self.rank)[0]


class RandomMiCALayer(MiCALayer):
    """B from singular vectors drawn at random, as in the paper's Figure 2: does it matter *which* ones?"""

    def directions(self, W):
        U = minor_components(W, min(W.shape))[0]  # all of them, since any may be drawn
        return U[:, torch.randperm(U.shape[1])[: self.rank]]


class OrthonormalMiCALayer(MiCALayer):
    """B a random orthonormal matrix, which knows nothing of W: do singular vectors matter at all?"""

    def directions(self, W):
        return torch.linalg.qr(torch.randn(W.shape[0], self.rank)).Q


class TrainedMiCALayer(MiCALayer):
    """B starts in the minor directions but is trained too: does it matter that it stays there?"""

    trained = ("A", "B")


class TransposedMiCALayer(LoRALayer):
    """The mirror image: A holds the minor *right* singular vectors, frozen; B = 0 is trained. Reads where W reads least."""

    trained = ("B",)

    def initial_factors(self, W):
        return minor_subspace(W.T, self.rank).T, torch.zeros(W.shape[0], self.rank)


# --- a few singular vectors of a large matrix ---

SMALL = 128  # below this many rows or columns, the whole decomposition is as quick
# The largest residual, in parts of the matrix's Frobenius norm, that vectors computed in this precision may leave.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}


def minor_subspace(W, rank):
    """The left singular vectors of W's smallest singular values: (out, in) -> (out, rank), orthonormal columns.

    Of the *thin* SVD, W = U S V^T with min(out, in) columns in U: for a tall W the full SVD's last columns are the
    left null space, which W never writes to, instead of the directions it writes to most weakly.

    How, without computing the others: multiplying a vector by W W^T stretches its component along each left singular
    vector by S^2, so repeated products turn it towards the *largest* ones; solving with W W^T divides by S^2 and turns
    it towards the smallest. inverse_iteration does that to a block of vectors, with one factorisation of a square W
    for all rounds. Where W is not square its smallest singular values are usually large and close together, and the
    rounds would hardly tell them apart; but then the smaller of W W^T and W^T W can be decomposed with little loss.
    What is found is trusted only if it is made of singular vectors, W V = U S and W^T U = V S, and if it stands apart
    from the next ones: random vectors would do for a nearly orthogonal W. Else (a W that lacks rank, say) float64 is
    tried, and last the decomposition of the whole.

    Computed in float32 or float64, as it takes, and returned in float32 (float64 for a float64 W), on W's device. Signs,
    and the order among equal singular values, are arbitrary: compare projectors B B^T, never vectors. Raises
    ValueError for a rank below 1 or above min(out, in).
    """
    return minor_components(W, rank)[0]


def minor_components(W, rank):
    """(U, S, V) of W's `rank` smallest singular values, largest first: (out, rank), (rank,), (in, rank)."""
    square = W.shape[0] == W.shape[1]
    search, dtype = (inverse_iteration, factor_dtype(W)) if square else (smallest_of_gram, torch.float64)
    return components(W, rank, slice(-rank, None), search, dtype)


def major_components(W, rank):
    """(U, S, V) of W's `rank` largest singular values, largest first: (out, rank), (rank,), (in, rank)."""
    return components(W, rank, slice(rank), power_iteration, factor_dtype(W))


@torch.no_grad()
def components(W, rank, part, search, dtype):
    """The `part` (a slice) of W's thin SVD that `search` looks for: the common frame of the functions above.

    search(M, rank) yields ever better orthonormal bases (Q, Y), (out, k) and (in, k), that contain the left and the right
    vectors, with k >= rank. M is W in `dtype`, and where that is not precise enough in float64.
    """
    check_rank(rank, W.shape)
    result = factor_dtype(W)
    if W.is_meta:  # shapes are all there is, and all that counting parameters needs
        return tuple(W.new_empty(shape, dtype=result) for shape in ((W.shape[0], rank), (rank,), (W.shape[1], rank)))
    source = W.cpu() if W.device.type == "mps" else W  # mps has no float64
    scale = source.abs().max().item()
    if min(W.shape) >= max(SMALL, 4 * rank) and scale > 0:
        for precision in dict.fromkeys([dtype, torch.float64]):
            M = source.to(precision, copy=True).div_(scale)  # no square of a number overflows or vanishes
            tolerance = TOLERANCE[precision] * torch.linalg.vector_norm(M)
            for Q, Y in search(M, rank):
                if not (Q.isfinite().all() and Y.isfinite().all()):  # M is singular
                    break
                QM, MY = Q.T @ M, M @ Y  # (k, in), (out, k)
                P, values, Zh = torch.linalg.svd(Q.T @ MY)  # within these bases M is small, (k, k)
                P, S, Z = P[:, part], values[part], Zh.T[:, part]
                U, V = Q @ P, Y @ Z
                residual = torch.cat([MY @ Z - U * S, QM.T @ P - V * S]).norm(dim=0).max()  # of (out + in, rank)
                spread = (values[0] - S[0]) + (S[-1] - values[-1])  # how far those not kept are from those kept
                if residual <= tolerance and (residual <= spread / 10 or len(values) == rank):
                    if S[0] <= tolerance:  # values as small as rounding errors say nothing about their vectors
                        break
                    return tuple(factor.to(W.device, result) for factor in (U, S * scale, V))
    U, S, Vh = torch.linalg.svd(source.double(), full_matrices=False)  # (out, k), (k,), (k, in), largest first
    return tuple(factor[..., part].to(W.device, result).contiguous() for factor in (U, S, Vh.T))


def orthonormal(columns):
    return torch.linalg.qr(columns).Q


def start(M, k):
    """Random columns (out, k), always the same ones, without touching torch's own state of random numbers."""
    generator = torch.Generator(M.device).manual_seed(0)
    return torch.randn(M.shape[0], k, generator=generator, dtype=M.dtype, device=M.device)


def inverse_iteration(M, rank):
    """Bases of the minor directions of a square M.

    With s_i the i-th smallest singular value, a round shrinks the error by (s_rank / s_(k+1))^2: hence k = 2 rank.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(M)  # a singular M shows in what is divided by it
    Q = start(M, 2 * rank)
    for _ in range(4):
        for _ in range(7):
            Y = orthonormal(torch.linalg.lu_solve(LU, pivots, Q))  # M^-1 Q: towards the minor right vectors
            Q = orthonormal(torch.linalg.lu_solve(LU, pivots, Y, adjoint=True))  # M^-T Y: towards the minor left ones
        yield Q, Y


def power_iteration(M, rank):
    """Bases of the major directions of M: the same, with products instead of solutions, towards the other end."""
    Q = start(M, 2 * rank)
    for _ in range(16):
        for _ in range(8):
            Y = orthonormal((Q.T @ M).T)  # several times faster here than M.T @ Q
            Q = orthonormal(M @ Y)
        yield Q, Y


def smallest_of_gram(M, rank):
    """Bases of the minor directions of M: eigenvectors of M M^T or M^T M, whichever is smaller. Its eigenvalues are S^2."""
    wide = M.shape[0] <= M.shape[1]
    M = M if wide else M.T
    Q = torch.linalg.eigh(M @ M.T).eigenvectors[:, :rank]  # smallest first
    Y = orthonormal((Q.T @ M).T)
    yield (Q, Y) if wide else (Y, Q)
