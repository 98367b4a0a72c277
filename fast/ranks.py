"""Several processes as one: `torchrun --nproc-per-node N train.py ...`, data parallel.

Every process holds the whole model and takes its share of each batch's windows; gradients are added up before each step,
so that all make the same step, the one that a single process would make, to rounding. Process 0 does all the rest
(asking, printing, writing) and calls the others, the followers, when there is something to train. A loss is a sum over
predictions divided by their number in the *whole* batch (train.adapt), so shares need not be equal. With dropout the
step is another one: each process draws for its own share.

Without torchrun there is one process, and nothing here does anything.
"""

import os
import sys
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from torch import distributed


def count():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def together(device):
    """While it lasts, the processes that torchrun started are joined: over nccl, a GPU each, or over gloo on CPUs.

    device: the name that was asked for, or "auto". Followers wait here until process 0 has checked what it was given, and
    print nothing but what goes wrong with them alone. When process 0 leaves, for whatever reason, they are sent home.
    Raises ValueError for one GPU by its number.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device} would put every process on one GPU: give cuda, and each takes its own")
    use_cuda = device.startswith("cuda") or device == "auto" and torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # A day: followers wait while process 0 asks questions
    distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(days=1))
    streams, first = (sys.stdout, sys.stderr), distributed.get_rank() == 0
    try:
        if not first:
            if call(None) is None:
                sys.exit(2)  # process 0 says why
            sys.stdout = sys.stderr = open(os.devnull, "w")
        yield
    finally:
        sys.stdout, sys.stderr = streams
        if first:
            with suppress(ValueError):  # one of them is gone already
                call(None)
        if count() > 1:
            distributed.destroy_process_group()
    if not first:
        # It has nothing left to do, and gloo's threads were seen to abort an interpreter that ends by itself
        os._exit(0)


@contextmanager
def called(*job):
    """In process 0: the followers do(*job) meanwhile. If it fails, they are at a step and wait for no word: it just leaves."""
    call(job)
    try:
        yield
    except BaseException:
        if count() > 1:
            distributed.destroy_process_group()
        raise


def call(job):
    """Process 0 tells the followers what to do next; they return it. None: go home."""
    if count() > 1:
        box = [job]
        spoken(distributed.broadcast_object_list, box)
        job = box[0]
    return job


def spoken(message, *args):
    """Exchange a message; ValueError where another process is gone."""
    try:
        message(*args)
    except RuntimeError:
        raise ValueError("another of torchrun's processes stopped, and this one with it: see what it said") from None


def follows(do):
    """In a follower: do(*job) for each that process 0 calls, then True. In process 0, which lets them begin, False."""
    if count() == 1 or distributed.get_rank() == 0:
        call("begin")
        return False
    while (job := call(None)) is not None:
        do(*job)
    return True


def agree(tensors):
    """Give all processes process 0's numbers: a decomposition may come out with other signs elsewhere."""
    for tensor in tensors if count() > 1 else ():
        spoken(distributed.broadcast, tensor.detach(), 0)


def parts(rows, pieces):
    """This process's share of a batch's windows (batch, time), every count()-th, in so many pieces; none of an empty one."""
    share = rows[distributed.get_rank() :: count()] if count() > 1 else rows
    return share.chunk(pieces) if len(share) else ()


@torch.no_grad()
def add_up(parameters, loss):
    """Sum the parameters' gradients over all processes, in place; return the sum of their losses."""
    if count() > 1:
        for p in parameters:
            if p.grad is None:  # its share was empty
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters]
        loss = torch.as_tensor(loss, device=grads[0].device)  # a plain 0.0 where the share was empty
        # One message, not hundreds
        flat = torch.cat([loss.reshape(1).to(grads[0]), *(grad.flatten() for grad in grads)])
        spoken(distributed.all_reduce, flat)
        loss = flat[0].clone()
        for grad, summed in zip(grads, flat[1:].split([grad.numel() for grad in grads])):
            grad.copy_(summed.view_as(grad))
    return loss
