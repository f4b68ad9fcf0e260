"""Random numbers of several processes: each replica draws its own dropout and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sftkit.checkpoints.manifest import details_of


def seed_replica(seed: int, replica: int, step: int) -> None:
    """Set the random state of Python, numpy, torch and its devices.

    Args:
        seed: of the run.
        replica: the number of the group of processes that draw the same numbers.
        step: from which they are drawn.
    """
    from transformers import set_seed

    set_seed(int(np.random.SeedSequence([seed, replica, step]).generate_state(1)[0]))


def keeps_random_state(checkpoint: str, processes: int) -> bool:
    """Whether a checkpoint has the random state of each process, which it has not if their number was another."""
    return bool(details_of(Path(checkpoint)).get("world_size", processes) == processes)


def rounds_at_random(optim_args: str | None) -> bool:
    """Whether the optimizer rounds weights at random, so that copies with other random numbers differ.

    Args:
        optim_args: of `transformers.TrainingArguments`.
    """
    from transformers.utils.generic import strtobool

    pairs = [pair.partition("=") for pair in (optim_args or "").replace(" ", "").split(",")]
    return any(name == "bf16_stochastic_round" and strtobool(value) for name, _, value in pairs)
