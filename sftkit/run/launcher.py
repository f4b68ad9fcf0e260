"""What the launcher of a run's processes says in their environment, and whether it makes sense."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from sftkit.errors import Problem
from sftkit.ranks import LAUNCH, not_a_number

TORCHRUN = f"{LAUNCH}, or torchrun --nproc_per_node N --no-python sftkit run ..."
SLURM = (
    "start it with: sftkit launch --on slurm run ..., or one torchrun on each node: srun --ntasks-per-node 1 torchrun "
    "--nnodes $SLURM_NNODES --nproc_per_node N --rdzv_backend c10d --rdzv_endpoint FIRST_NODE:29500 --no-python "
    "sftkit run ...; for a single process: srun --ntasks 1 sftkit run ..."
)
#: Launchers that start several processes without the variables of torch: how many, the number of this one, the fix.
_STARTERS = {
    "Slurm": (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID", SLURM),
    "Open MPI": (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK", TORCHRUN),
    "MPI": (("PMI_SIZE",), "PMI_RANK", TORCHRUN),
}
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def launch_problems(variables: Mapping[str, str] | None = None, planned: bool = False) -> list[Problem]:
    """What is wrong with the variables that say how many processes a run has, and which one this is.

    Args:
        variables: the environment; by default that of this process.
        planned: whether WORLD_SIZE alone may say how many processes there will be, as for a check before the launch.
    """
    known = {name: text.strip() for name, text in (os.environ if variables is None else variables).items()}
    wrong = [not_a_number(name, known[name]) for name in _NUMBERS if known.get(name) and not known[name].isdecimal()]
    return wrong or [*_contradictions(known, planned), *_unused_starts(known)]


def shows_launch_problems() -> bool:
    """Whether this is the first of the processes that the launcher has started, which shows what is wrong with it."""
    ranks = [os.environ.get(name, "") for name in ("RANK", *(rank for _, rank, _ in _STARTERS.values()))]
    return next((text for text in ranks if text), "0") in ("0", os.environ.get("WORLD_SIZE"))


def _contradictions(known: Mapping[str, str], planned: bool) -> Iterator[Problem]:
    """What the variables of torch say that cannot be."""
    numbers = {name: int(known[name]) for name in _NUMBERS if known.get(name)}
    size, unset = numbers.get("WORLD_SIZE"), f"unset it for a single process; for several, {TORCHRUN}"
    if size is None:
        if "RANK" in numbers:
            yield Problem("set without WORLD_SIZE", "the variable RANK", unset)
        elif known.get("MASTER_ADDR") and known.get("ACCELERATE_MIXED_PRECISION"):
            what = "accelerate was asked for several processes, and starts one: it does so with --cpu"
            yield Problem(what, "accelerate launch", f"{TORCHRUN}; with train.use_cpu=true for the CPU")
        return
    if size == 0:
        yield Problem("there are no processes", "the variable WORLD_SIZE", unset)
    elif size > 1 and not (planned and "RANK" not in numbers):
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not known.get(name):
                yield Problem(f"WORLD_SIZE is {size}, and {name} is not set", f"the variable {name}", TORCHRUN)
    for less, more in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if less in numbers and more in numbers and numbers[less] >= max(numbers[more], 1):
            what = f"{less} is {numbers[less]}, and {more} is {numbers[more]}: the largest is {more} - 1"
            yield Problem(what, f"the variable {less}", TORCHRUN)
    if numbers.get("LOCAL_WORLD_SIZE", 0) > size:
        what = f"LOCAL_WORLD_SIZE is {numbers['LOCAL_WORLD_SIZE']}, and WORLD_SIZE is {size}"
        yield Problem(what, "the variable LOCAL_WORLD_SIZE", TORCHRUN)


def _unused_starts(known: Mapping[str, str]) -> Iterator[Problem]:
    """Processes that were started together, and would each be a run of its own."""
    for launcher, (sizes, rank, fix) in _STARTERS.items():
        several = "WORLD_SIZE" in known
        name = next((name for name in sizes[: 1 if several else None] if known.get(name, "").isdecimal()), None)
        if name is None or not known.get(rank):
            continue
        # Under torchrun, each process that was started is a torchrun, which counts them as groups.
        joined = int(known.get("GROUP_WORLD_SIZE") or known["WORLD_SIZE"]) if several else 1
        if joined < int(known[name]):
            what = f"{launcher} starts {known[name]} processes ({name}), of which each would be a run of its own"
            if several:
                what = f"{launcher} starts {known[name]} processes ({name}), and {joined} of them form a run"
            yield Problem(what, f"the variable {rank}", fix)
            return
