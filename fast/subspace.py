"""A few singular vectors of a large matrix, without the rest of the decomposition: minor_components, major_components.

The plain version is torch.linalg.svd (mica.minor_directions); a test holds these against it. At 4096 x 4096 they are
an order of magnitude faster (bench/README.md).

How: multiplying a vector by W W^T stretches its component along each left singular vector by S^2, so repeated products
turn it towards the *largest* ones; solving with W W^T divides by S^2 and turns it towards the smallest.
inverse_iteration does that to a block of vectors, with one factorisation of a square W for all rounds. Where W is not
square its smallest singular values are usually large and close together, and the rounds would hardly tell them apart;
but then the smaller of W W^T and W^T W can be decomposed with little loss.

What is found is trusted only if it is made of singular vectors, W V = U S and W^T U = V S, and if it stands apart from
the next ones: random vectors would do for a nearly orthogonal W. Else (a W that lacks rank, say) float64 is tried, and
last the decomposition of the whole.
"""

import torch

SMALL = 128  # below this many rows or columns, the whole decomposition is as quick
LARGE = 1024  # from here on, a few eigenvectors by scipy are quicker than all by torch
# The largest residual, in parts of the matrix's Frobenius norm, that vectors computed in this precision may leave.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}


def minor_components(W, rank):
    """(U, S, V) of the `rank` smallest singular values of W (out, in), largest first: (out, rank), (rank,), (in, rank).

    Of the *thin* SVD, W = U S V^T with min(out, in) columns in U. Computed in float32 or float64, as it takes, and
    returned in float32 (float64 for a float64 W), on W's device. Signs, and the order among equal singular values, are
    arbitrary. Raises ValueError for a rank below 1 or above min(out, in).
    """
    if W.shape[0] == W.shape[1]:
        return find(W, rank, slice(-rank, None), inverse_iteration, precision=W.dtype)
    return find(W, rank, slice(-rank, None), eigenvectors, precision=torch.float64)


def major_components(W, rank):
    """(U, S, V) of the `rank` largest singular values, largest first; all else as in minor_components."""
    return find(W, rank, slice(rank), power_iteration, precision=W.dtype)


@torch.no_grad()
def find(W, rank, kept, bases, precision):
    """The columns `kept` (a slice) of W's thin SVD, from approximate bases of their spaces: the frame of the above.

    bases(M, rank) yields ever better orthonormal bases (Q, Y), (out, k) and (in, k), that contain the left and the right
    vectors, with k >= rank. M is W in `precision` (at least float32), and where that is not enough in float64.
    """
    if not 1 <= rank <= min(W.shape):
        raise ValueError(f"rank {rank} does not fit a weight of shape {tuple(W.shape)}: choose 1 to {min(W.shape)}")
    result = torch.promote_types(W.dtype, torch.float32)
    if W.is_meta:  # shapes are all there is, and all that counting parameters needs
        return tuple(W.new_empty(shape, dtype=result) for shape in ((W.shape[0], rank), (rank,), (W.shape[1], rank)))
    source = W if W.is_cuda else W.cpu()  # mps has no float64
    scale = source.abs().max().item()
    if min(W.shape) >= max(SMALL, 4 * rank) and scale > 0:
        for dtype in dict.fromkeys([torch.promote_types(precision, torch.float32), torch.float64]):
            M = source.to(dtype, copy=True).div_(scale)  # no square of a number overflows or vanishes
            tolerance = TOLERANCE[dtype] * torch.linalg.vector_norm(M)
            for Q, Y in bases(M, rank):
                if not (Q.isfinite().all() and Y.isfinite().all()):  # M is singular
                    break
                QM, MY = Q.T @ M, M @ Y  # (k, in), (out, k)
                P, values, Zh = torch.linalg.svd(Q.T @ MY)  # within these bases M is small, (k, k)
                P, S, Z = P[:, kept], values[kept], Zh.T[:, kept]
                U, V = Q @ P, Y @ Z
                residual = torch.cat([MY @ Z - U * S, QM.T @ P - V * S]).norm(dim=0).max()  # of (out + in, rank)
                spread = (values[0] - S[0]) + (S[-1] - values[-1])  # how far those not kept are from those kept
                if residual <= tolerance and (residual <= spread / 10 or len(values) == rank):
                    if S[0] <= tolerance:  # values as small as rounding errors say nothing about their vectors
                        break
                    return tuple(factor.to(W.device, result) for factor in (U, S * scale, V))
    U, S, Vh = torch.linalg.svd(source.double(), full_matrices=False)  # (out, k), (k,), (k, in), largest first
    return tuple(factor[..., kept].to(W.device, result).contiguous() for factor in (U, S, Vh.T))


def orthonormal(columns):
    return torch.linalg.qr(columns).Q


def random_columns(M, k):
    """(out, k), always the same ones, without touching torch's own state of random numbers."""
    generator = torch.Generator(M.device).manual_seed(0)
    return torch.randn(M.shape[0], k, generator=generator, dtype=M.dtype, device=M.device)


def inverse_iteration(M, rank):
    """Bases of the minor directions of a square M.

    With s_i the i-th smallest singular value, a round shrinks the error by (s_rank / s_(k+1))^2: hence k = 2 rank.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(M)  # a singular M shows in what is divided by it
    Q = random_columns(M, 2 * rank)
    for _ in range(4):
        for _ in range(7):
            Y = orthonormal(torch.linalg.lu_solve(LU, pivots, Q))  # M^-1 Q: towards the minor right vectors
            Q = orthonormal(torch.linalg.lu_solve(LU, pivots, Y, adjoint=True))  # M^-T Y: towards the minor left ones
        yield Q, Y


def power_iteration(M, rank):
    """Bases of the major directions of M: the same, with products instead of solutions, towards the other end."""
    Q = random_columns(M, 2 * rank)
    for _ in range(16):
        for _ in range(8):
            Y = orthonormal((Q.T @ M).T)  # several times faster here than M.T @ Q
            Q = orthonormal(M @ Y)
        yield Q, Y


def eigenvectors(M, rank):
    """Bases of the minor directions of M, from M M^T or M^T M, whichever is smaller: its eigenvalues are S^2."""
    wide = M.shape[0] <= M.shape[1]
    M = M if wide else M.T
    if M.is_cuda or len(M) < LARGE:
        Q = torch.linalg.eigh(M @ M.T).eigenvectors[:, :rank]  # smallest first
    else:  # scipy computes but a triangle of the product, and no other eigenvectors: three times as fast
        from scipy.linalg import blas, eigh  # only here: it takes a moment to import

        a = M.numpy()
        gram = blas.dsyrk(1.0, a) if a.flags.f_contiguous else blas.dsyrk(1.0, a.T, trans=1)  # the upper triangle
        Q = torch.from_numpy(eigh(gram, lower=False, subset_by_index=(0, rank - 1), check_finite=False)[1])
    Y = orthonormal((Q.T @ M).T)
    yield (Q, Y) if wide else (Y, Q)
