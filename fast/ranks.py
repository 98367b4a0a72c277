"""Several processes as one: `torchrun --nproc-per-node N train.py ...`, data parallel, of the base a part each if asked.

Every process holds the whole model and takes its share of each batch's windows; gradients are added up before each step,
so that all make the same step, the one that a single process would make, to rounding. Process 0 does all the rest
(asking, printing, writing) and calls the others, the followers, when there is something to train. A loss is a sum over
predictions divided by their number in the *whole* batch (train.adapt), so shares need not have as many each. With
dropout the step is another one: each process draws for its own share.

With --shard a process has on its device only its part of every block's frozen weights, and while a block computes the
processes lend each other the rest (PyTorch's fully_shard). Adapters, embeddings and the head are whole everywhere, and so
is the base that methods start from, in the CPU's memory, where it is asked what it knew before.

Without torchrun there is one process, and nothing here does anything.
"""

import gc
import os
import sys
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta

import torch
from torch import distributed, nn

GONE = "another of torchrun's processes stopped, and this one with it: see what it said"


def count():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def first():
    """Whether this is process 0, or the only one."""
    return count() == 1 or distributed.get_rank() == 0


@contextmanager
def together(device):
    """While it lasts, the processes that torchrun started are joined: over nccl, a GPU each, or over gloo on CPUs.

    device: the name that was asked for, or "auto". Followers wait here until process 0 has checked what it was given, and
    print nothing but what goes wrong with them alone. When process 0 leaves, for whatever reason, they are sent home; where
    all went well, every one of several processes ends right here. Raises ValueError for one GPU by its number.
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
    streams, leads = (sys.stdout, sys.stderr), first()
    try:
        if not leads:
            if call(None) is None:
                sys.exit(2)  # process 0 says why
            sys.stdout = sys.stderr = open(os.devnull, "w")
        yield
    except RuntimeError as error:  # inside a layer of a sharded model
        if not any(name in str(error).lower() for name in ("gloo", "nccl", "connection closed")):
            raise
        raise ValueError(GONE) from None
    finally:
        sys.stdout, sys.stderr = streams
        if leads:
            with suppress(ValueError):  # one of them is gone already
                call(None)
        if count() > 1:
            distributed.destroy_process_group()
    leave()


def leave():
    """End this process, all being well, at once: gloo's threads were seen to abort an interpreter that ends by itself."""
    sys.stdout.flush()
    sys.stderr.flush()
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
        raise ValueError(GONE) from None


def follows(do):
    """In a follower: do(*job) for each that process 0 calls, then True. In process 0, which lets them begin, False."""
    if first():
        call("begin")
        return False
    while (job := heard()) is not None:
        do(*job)
    return True


def share(model, split):
    """Give all processes process 0's numbers of what is trained, and of buffers; split: and a part of the base to each.

    (A decomposition may come out with other signs elsewhere.)
    """
    if split:
        shard(model)
    for tensor in (*(p for p in model.parameters() if p.requires_grad), *model.buffers()) if count() > 1 else ():
        whole = tensor.detach().contiguous()  # nccl sends no other
        spoken(distributed.broadcast, whole, 0)
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
        # One message, not hundreds
        flat = torch.cat([losses.to(grads[0]), *(grad.flatten() for grad in grads)])
        spoken(distributed.all_reduce, flat)
        losses, *summed = flat.split([len(losses), *(grad.numel() for grad in grads)])
        for grad, total in zip(grads, summed):
            grad.copy_(total.view_as(grad))
    return losses


# --- of the base a part each ---------------------------------------------------------------------------------------------

sharded = None  # the model, of all that were, that the processes lend each other now


def check(device, shard, compile, full):
    """Raise ValueError for what does not go with several processes, or with --shard."""
    if count() > 1 and device.type == "mps":
        raise ValueError("several processes train on CPUs or on CUDA's GPUs: give --device cpu")
    if shard and count() == 1:
        raise ValueError("--shard is for several processes: start them by torchrun --nproc-per-node N train.py ...")
    if shard and (compile or full):
        raise ValueError(
            f"--shard does not go with {'--compile' if compile else '--method full'}: leave one of the two out"
        )


def shard(model):
    """Leave this process, on its device, only its part of the frozen weights of the model's blocks. Returns the model.

    Lending takes all processes. In training they are at the same layer by themselves; when process 0 asks the model
    something, it calls the others to come along, whatever it asks.
    """
    from torch.distributed.fsdp import fully_shard  # only here: not every build of torch has it

    global sharded
    sharded = None
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
    model.to(device)  # what is left: adapters, embeddings, the head
    alone = model.hidden_states

    def hidden_states(*args, **kwargs):
        with called("along") if first() and not model.training else nullcontext():
            return alone(*args, **kwargs)

    model.hidden_states, sharded = hidden_states, model
    return model


def heard():
    """In a follower: the next job process 0 calls; before that, whenever it asks the sharded model, come along."""
    while (job := call(None)) == ("along",):
        training = sharded.training
        with torch.inference_mode():  # nothing is used of the answer to this one token, not even a draw for dropout
            sharded.eval().hidden_states(torch.zeros(1, 1, dtype=torch.long, device=sharded.device))
        sharded.train(training)
    return job


def meet():
    """With a sharded model all processes come here before any goes on, and followers serve what process 0 asks until then."""
    if sharded is not None:
        call("on") if first() else heard()
