"""How the rows of a step are shared, and whether another number of processes can continue a run exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Fields that may change together with the number of processes, as long as a step has the same rows.
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Shares:
    """How the rows of a step are shared.

    Attributes:
        processes: how many there are.
        replicas: how many groups of them work on different rows.
        size: rows of a batch.
        accumulation: batches of a step.
        exact: whether the sum over a step does not depend on how its rows are divided.
    """

    processes: int
    replicas: int
    size: int
    accumulation: int
    exact: bool

    @classmethod
    def of(cls, train: Mapping[str, Any], processes: int, sharing: int) -> Shares:
        """Those of a run.

        Args:
            train: from `train_values`.
            processes: of the run.
            sharing: how many of them work on the same rows.
        """
        size, accumulation = (int(train[name]) for name in BATCHES)
        exact = train["average_tokens_across_devices"] is not False
        return cls(processes, max(processes // sharing, 1), size, accumulation, exact)

    @property
    def rows(self) -> int:
        """The rows of an optimizer step."""
        return self.size * self.replicas * self.accumulation

    @property
    def together(self) -> int:
        """The rows that all processes compute at the same time."""
        return self.size * self.replicas

    def differences(self, new: Shares, streams: bool, drops_last: bool) -> str:
        """Why steps have other rows than before, in words; empty if they have the same.

        Args:
            new: those of the resumption.
            streams: whether each process has a stream of its own.
            drops_last: whether the last rows of an epoch are left out.
        """
        if self.rows != new.rows:
            return f"a step has {new.rows} rows instead of {self.rows}"
        if streams and self.replicas != new.replicas:
            return f"each of {self.processes} processes has its own position in the stream"
        if drops_last and self.together != new.together:
            return "train.dataloader_drop_last leaves out other rows"
        if not (self.exact and new.exact) and self != new:
            return "the loss is a mean over the means of the processes (train.average_tokens_across_devices)"
        return ""

    def advice(self, new: Shares) -> str:
        """How the resumption gets steps of the same rows."""
        accumulation, rest = divmod(self.rows, new.together)
        if self.rows != new.rows and accumulation and not rest:
            return f"set train.gradient_accumulation_steps={accumulation}"
        return "set it back"


def shares_of(old: Mapping[str, Any], new: Mapping[str, Any], processes: int) -> tuple[Shares, Shares]:
    """How rows were shared in a run, and how they are in its resumption.

    Args:
        old: the manifest of the run.
        new: that of its resumption.
        processes: of the resumption.
    """
    before = Shares.of(old["train"], old["parts"][-1]["world_size"], old["engine"]["sharing"])
    return before, Shares.of(new["train"], processes, new["engine"]["sharing"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], processes: int) -> str:
    """Why the steps of a resumption have other rows; as `Shares.differences`."""
    before, now = shares_of(old, new, processes)
    streams, drops_last = new["config"]["data"]["streaming"], bool(new["train"]["dataloader_drop_last"])
    return before.differences(now, streams, drops_last)


def share_note(old: Mapping[str, Any], new: Mapping[str, Any], processes: int) -> str:
    """What is said if the rows of a step are divided in another way; empty if they are not."""
    before, now = shares_of(old, new, processes)
    if before == now or differences(old, new, processes):
        return ""
    counts = f"{now.processes} processes instead of {before.processes}: " if now.processes != before.processes else ""
    return (
        f"{counts}each step still has the same {now.rows} rows, in batches of {now.size} x {now.replicas} instead of "
        f"{before.size} x {before.replicas}. Sums are rounded in another order, and dropout and noise are drawn anew"
    )
