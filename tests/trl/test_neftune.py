"""NEFTune's noise in the trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from sftkit_trl import ConstantLengthDataset, SFTTrainer

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}


def embeddings_twice(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings, ids = model.get_input_embeddings(), torch.tensor([[1, 0, 1]])
    return embeddings(ids), embeddings(ids)


def test_noise_is_added_only_while_training(make) -> None:
    hooks = []

    class Looking(SFTTrainer):
        def training_step(self, model: Any, *arguments: Any) -> Any:
            hooks.append(len(model.get_input_embeddings()._forward_hooks))
            one, other = embeddings_twice(model.train())
            assert not torch.equal(one, other)
            return super().training_step(model, *arguments)

    trainer = make(args={"neftune_noise_alpha": 5.0})
    trainer.__class__ = Looking
    trainer.train()
    assert hooks == [1, 1]
    assert len(trainer.model.get_input_embeddings()._forward_hooks) == 0
    assert torch.equal(*embeddings_twice(trainer.model.train()))


@pytest.mark.parametrize(("name", "adapter"), [("_trl_activate_neftune", True), ("_activate_neftune", False)])
def test_noise_can_be_switched_on_and_off_by_hand(make, rows, tokenizer, name, adapter) -> None:
    data = ConstantLengthDataset(tokenizer, rows, "text", seq_length=16, num_of_sequences=16)
    options = {"neftune_noise_alpha": 5.0, "packing": True}
    trainer = make(args=options, train_dataset=data, peft_config=LoraConfig(**LORA) if adapter else None)
    trainer.model = getattr(trainer, name)(trainer.model)
    one, other = embeddings_twice(trainer.model.train())
    assert not torch.allclose(one, other)
    trainer.neftune_hook_handle.remove()
    assert torch.equal(*embeddings_twice(trainer.model))
    assert trainer.train().global_step == 2
    assert len(trainer.model.get_input_embeddings()._forward_hooks) == 0
