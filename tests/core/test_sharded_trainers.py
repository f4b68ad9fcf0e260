"""A trainer that was to shard its model has sharded it, and every run ends with a model or an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from sftkit.errors import RunError, TrainingError
from sftkit.training.saving import save_beside
from sftkit.training.sharding import require_sharded


def trainer(fsdp: bool) -> SimpleNamespace:
    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    arguments = SimpleNamespace(should_save=True)
    return SimpleNamespace(is_fsdp_enabled=fsdp, model_wrapped=nn.Linear(2, 2), accelerator=accelerator, args=arguments)


def test_a_model_that_accelerate_did_not_shard_is_refused():
    require_sharded(trainer(fsdp=False))
    with pytest.raises(RunError, match="accelerate has not sharded the model"):
        require_sharded(trainer(fsdp=True))


@pytest.mark.parametrize("written", [[], ["config.json"]])
def test_a_save_that_writes_no_weights_is_an_error_and_leaves_nothing(tmp_path, written):
    def write(directory: str) -> None:
        for name in written:
            (tmp_path / directory).mkdir(parents=True)
            (tmp_path / directory / name).touch()

    with pytest.raises(TrainingError, match="the model was not written"):
        save_beside(write, tmp_path, True, trainer(fsdp=True))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
