"""A plugin for `soak.py`: writes the process's memory, open files and threads to a file, from inside the training."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Annotated, Any

from sftkit.api import Field, Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class Watch(Plugin):
    """Writes memory, open files and threads to a file."""

    path: Annotated[str, Field(description="the file")]
    every: Annotated[int, Field(gt=0, description="number of steps between measurements")] = 100

    @hookimpl
    def trainer_callbacks(self, config: Any) -> list[Any]:
        import psutil
        from transformers import TrainerCallback

        process, file, every = psutil.Process(), Path(self.path), self.every

        class Watcher(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % every:
                    return
                gc.collect()  # so that garbage that only waits for the collector is not taken for a leak
                entry = {
                    "step": state.global_step,
                    "rss": process.memory_info().rss / 2**20,
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                }
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(entry) + "\n")

        return [Watcher()]
