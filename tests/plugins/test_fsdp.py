"""What plugin fsdp refuses before anything is read, and which modules it shards."""

from __future__ import annotations

import pytest

from sftkit.testing import tiny_config, tiny_model
from sftkit.training.whole import Structure, take_weights
from sftkit_plugins.fsdp import FSDP
from sftkit_plugins.fsdp.engine import FSDPEngine, blocks, require_uniform


@pytest.fixture(autouse=True)
def _several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")


def problems(plugin: FSDP, **sections: object) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in plugin.check_run(tiny_config(**sections))]


def test_a_single_process_is_refused(monkeypatch):
    assert problems(FSDP()) == []
    monkeypatch.delenv("WORLD_SIZE")
    assert "a single process" in problems(FSDP())[0]


@pytest.mark.parametrize(
    ("train", "where"),
    [
        ({"optim": "adafactor"}, "train.optim"),
        ({"fp16": True}, "train.fp16"),
        ({"torch_compile": True}, "train.torch_compile"),
        ({"save_only_model": True, "load_best_model_at_end": True}, "train.save_only_model"),
    ],
)
def test_what_cannot_be_sharded_is_refused(train, where):
    assert [problem.partition(":")[0] for problem in problems(FSDP(), train=train)] == [where]


def test_quantized_weights_and_offloading_on_the_cpu_are_refused():
    model = {"options": {"quantization_config": {"load_in_4bit": True}}}
    assert "quantized weights" in problems(FSDP(), model=model)[0]
    assert "offload" in problems(FSDP(offload=True), train={"use_cpu": True})[0]


def test_only_the_first_process_loads_weights(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert not FSDPEngine(FSDP()).receives
    monkeypatch.setenv("RANK", "1")
    engine = FSDPEngine(FSDP())
    with engine.loading():
        assert {weight.device.type for weight in tiny_model().parameters()} == {"meta"}
    assert engine.receives


@pytest.mark.parametrize("adapter", [False, True])
def test_blocks_are_those_of_transformers_also_inside_an_adapter(adapter):
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    model = get_peft_model(model, LoraConfig(target_modules="all-linear")) if adapter else model
    assert [type(block).__name__ for block in blocks(model)] == ["LlamaDecoderLayer"] * 2


def test_weights_that_are_taken_leave_a_model_on_the_meta_device_with_its_ties():
    model = tiny_model("gemma2", tie_word_embeddings=True)
    before = Structure.of(model)
    weights = take_weights(model)
    assert Structure.of(model) == before
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert all(weight.is_meta for weight in model.parameters())
    assert weights.keys() == before.parameters.keys()
    assert not any(weight.is_meta for weight in weights.values())


def test_a_model_of_another_structure_is_named():
    assert "lm_head" in Structure.of(tiny_model()).difference(Structure.of(tiny_model(tie_word_embeddings=True)))


def test_trained_weights_of_two_types_in_a_block_are_refused():
    from sftkit.errors import RunError

    model = tiny_model()
    require_uniform(model, blocks(model))
    model.model.layers[1].mlp.up_proj.bfloat16()
    with pytest.raises(RunError, match="several types"):
        require_uniform(model, blocks(model))
