"""Several processes as one: `torchrun --nproc-per-node N train.py ...`, data parallel, of the base a part each if asked.

All processes run the same program: each loads the base, takes its share of each batch's windows, measures. Gradients are
added up before each step, so that all make the same step, the one that a single process would make, to rounding. Only
process 0 writes and prints; what it alone knows, such as which runs are finished, the others ask by from_first. A loss is
a sum over predictions divided by their number in the *whole* batch (train.adapt), so shares need not have as many each.
With dropout the step is another one: each process draws for its own share.

With --shard a process has on its device only its part of every block's frozen weights, and while a block computes the
processes lend each other the rest (PyTorch's fully_shard). Adapters, embeddings and the head are whole everywhere, and so
is the base that methods start from, in the CPU's memory.

Without torchrun there is one process, and nothing here does anything.
"""

import gc
import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
PATIENCE = timedelta(minutes=10)  # with the others, at the start and at every step
GONE = "another of the processes stopped, and this one with it: see what it said"


def count():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def first():
    """Whether this is process 0, or the only one."""
    return count() == 1 or distributed.get_rank() == 0


@contextmanager
def together(device):
    """While it lasts, the processes that torchrun started are joined: over nccl, a GPU each, or over gloo on CPUs.

    device: the name that was asked for, or "auto". All but process 0 print nothing. Raises ValueError for one GPU by its
    number, for variables of torchrun that are set in part, and where the other processes do not come.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE is set but not {', '.join(missing)}: start by torchrun, or unset WORLD_SIZE")
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device} would put every process on one GPU: give cuda, and each takes its own")
    use_cuda = device.startswith("cuda") or device == "auto" and torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    leads, size, address = os.environ["RANK"] == "0", os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]
    if leads:
        print(f"waiting for {size} processes at {address} (torchrun starts them)", file=sys.stderr)
    before = [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)]  # torch is deaf
    try:
        distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError):
        how = f"start all by torchrun --nproc-per-node {size} train.py ..., or unset WORLD_SIZE for one process"
        said = f"not all {size} processes came to {address} in {PATIENCE.seconds // 60} minutes"
        raise ValueError(f"{said}: {how}") from None
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)
    streams = sys.stdout, sys.stderr
    try:
        if not leads:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        yield
        distributed.barrier()  # none leaves while another still talks to it
    except Exception as error:
        if not leads:  # what goes wrong with all of them process 0 says, and torchrun ends the others meanwhile
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        if any(name in str(error).lower() for name in ("gloo", "nccl", "connection closed", "connection reset")):
            raise ValueError(GONE) from None
        raise
    finally:
        sys.stdout, sys.stderr = streams
        distributed.destroy_process_group()


def from_first(ask):
    """What ask() gives in process 0: it is called there only."""
    box = [ask() if first() else None]
    if count() > 1:
        distributed.broadcast_object_list(box)
    return box[0]


def share(model, split):
    """Give all processes process 0's numbers of what is trained, and of buffers; split: and a part of the base to each.

    (A decomposition may come out with other signs elsewhere.)
    """
    if split:
        shard(model)
    for tensor in (*(p for p in model.parameters() if p.requires_grad), *model.buffers()) if count() > 1 else ():
        whole = tensor.detach().contiguous()  # nccl sends no other
        distributed.broadcast(whole, 0)
        tensor.detach().copy_(whole)


def parts(batch, pieces, ignore):
    """This process's share of a batch (x, y, ...), all (windows, time, ...), every count()-th window, in so many pieces.

    All shares are equal: where the windows do not suffice, the first is taken again with nothing in y but `ignore`.
    """
    if (n := count()) > 1:
        more = -len(batch[0]) % n
        batch = [torch.cat([tensor, tensor[:1].expand(more, *tensor.shape[1:])]) for tensor in batch]
        batch[1][len(batch[1]) - more :] = ignore
        batch = [tensor[distributed.get_rank() :: n] for tensor in batch]
    return zip(*(tensor.chunk(pieces) for tensor in batch))


@torch.no_grad()
def add_up(parameters, losses):
    """Sum the parameters' gradients over all processes, in place; return the sum of their losses (a vector)."""
    if count() > 1:
        grads = [p.grad for p in parameters]
        flat = torch.cat([losses.to(grads[0]), *(grad.flatten() for grad in grads)])  # one message, not hundreds
        distributed.all_reduce(flat)
        losses, *summed = flat.split([len(losses), *(grad.numel() for grad in grads)])
        for grad, total in zip(grads, summed):
            grad.copy_(total.view_as(grad))
    return losses


# --- of the base a part each ---------------------------------------------------------------------------------------------


def check(device, shard, compile, full):
    """Raise ValueError for what does not go with several processes, or with --shard."""
    if count() > 1 and device.type == "mps":
        raise ValueError("several processes train on CPUs or on CUDA's GPUs: give --device cpu")
    if shard and count() == 1:
        raise ValueError("--shard is for several processes: start them by torchrun --nproc-per-node N train.py ...")
    if shard and (compile or full):
        other = "--compile" if compile else "--method full"
        raise ValueError(f"--shard does not go with {other}: leave one of the two out")


def shard(model):
    """Leave this process, on its device, only its part of the frozen weights of the model's blocks. Returns the model."""
    from torch.distributed.fsdp import fully_shard  # only here: not every build of torch has it

    gc.collect()  # the last one's memory: it refers to itself
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    trained = {p for p in model.parameters() if p.requires_grad}
    # Frozen ones are the base's too (train.copy_for), which is to stay whole where it is
    own = {p: nn.Parameter(p.detach(), requires_grad=False) for p in set(model.parameters()) - trained}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, own.get(p, p))
    mesh = distributed.init_device_mesh(device, (count(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    return model.to(device)  # what is left: adapters, embeddings, the head
