"""Models of the facade's trainer: by name, with adapters, in few bits, checkpointed, and with noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer

from sftkit.testing import tiny_model
from sftkit_trl import ConstantLengthDataset, SFTTrainer

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}
SAVES = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def by_name(named, config, rows):
    """Makes a trainer of the model by its name."""

    def made(name: str = named, peft_config: Any = None, **options: Any) -> SFTTrainer:
        args = config(dataset_text_field="text", **options)
        return SFTTrainer(name, args=args, train_dataset=rows, eval_dataset=rows, peft_config=peft_config)

    return made


@pytest.fixture(scope="module")
def wide(tmp_path_factory, named) -> str:
    """The name of a model whose layers can be held in few bits."""
    path = tmp_path_factory.mktemp("wide")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    for file in Path(named).glob("*token*"):
        (path / file.name).write_bytes(file.read_bytes())
    return str(path)


def embeddings_twice(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings, ids = model.get_input_embeddings(), torch.tensor([[1, 0, 1]])
    return embeddings(ids), embeddings(ids)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_model_by_name_is_loaded_in_the_type_asked_for(by_name, dtype) -> None:
    trainer = by_name(model_init_kwargs={"torch_dtype": dtype})
    assert trainer.model.dtype == trainer.model.config.torch_dtype == torch.bfloat16


@pytest.mark.parametrize("options", [None, {"torch_dtype": "auto"}, {"torch_dtype": None}], ids=str)
def test_a_model_by_name_is_in_float32_as_it_was_saved(by_name, options) -> None:
    assert by_name(model_init_kwargs=options).model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [-1, "float33"])
def test_another_type_is_an_error(by_name, dtype) -> None:
    with pytest.raises(ValueError, match=f"Invalid `torch_dtype` passed to the SFTConfig.*but got {dtype}"):
        by_name(model_init_kwargs={"torch_dtype": dtype})


def test_further_arguments_of_a_models_loading(by_name) -> None:
    options = {"attn_implementation": "eager", "revision": "main", "trust_remote_code": False, "use_cache": False}
    trainer = by_name(model_init_kwargs={**options, "device_map": None, "quantization_config": None})
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.model.config.use_cache is False


def test_such_arguments_beside_a_loaded_model_are_an_error(make) -> None:
    with pytest.raises(ValueError, match=r"model_init_kwargs .* already instantiated"):
        make(args={"model_init_kwargs": {"torch_dtype": "float32"}})


def test_an_adapter_alone_is_trained_and_saved(by_name, tmp_path) -> None:
    config = LoraConfig(**LORA)
    before = config.to_dict()
    trainer = by_name(peft_config=config, **SAVES)
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert isinstance(trainer.model, PeftModel)
    assert trainer.train().training_loss > 0
    assert config.to_dict() == before
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    assert any((p != 0).any() for name, p in now.items() if "lora_B" in name)
    files = {file.name for file in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert "model.safetensors" not in files


def test_a_model_with_an_adapter_has_the_tags_too(by_name) -> None:
    trainer = by_name(peft_config=LoraConfig(**LORA))
    assert trainer.model.model_tags == trainer._tag_names


def test_a_saved_adapter_is_loaded_and_trained_on(by_name, make, named, tmp_path) -> None:
    first = by_name(peft_config=LoraConfig(**LORA))
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(named)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, first.model(ids).logits)
    second = make(model)
    assert second.model is model
    assert second.train().global_step == 2


def test_a_model_with_an_adapter_is_trained_itself(make) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))
    trainer = make(model)
    trainer.train()
    assert trainer.model is model
    assert any((p != 0).any() for name, p in model.named_parameters() if "lora_B" in name)


def test_a_second_adapter_is_not_made_and_that_is_told(make) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))
    with pytest.warns(UserWarning, match="PeftModel already"):
        trainer = make(model, peft_config=LoraConfig(**{**LORA, "r": 2}))
    assert trainer.model is model
    assert trainer.model.peft_config["default"].r == 4


def test_an_adapters_configuration_of_another_type_is_an_error(make) -> None:
    with pytest.raises(ValueError, match="you need to pass a PeftConfig object"):
        make(peft_config={"r": 4})


def test_another_kind_of_adapter(make, rows) -> None:
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    trainer = make(args={"learning_rate": 0.1, "max_steps": 8}, peft_config=prompts, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("reentrant", "packing"), [(None, True), (False, False), (True, False)])
def test_checkpointing_gives_the_same_training(make, adapter, reentrant, packing) -> None:
    options = {"packing": packing, "learning_rate": 1e-2}
    checkpointing = {"gradient_checkpointing": True}
    if reentrant is not None:
        checkpointing["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    trained = []
    for more in ({}, checkpointing):
        torch.manual_seed(0)
        trainer = make(args={**options, **more}, peft_config=LoraConfig(**LORA) if adapter else None)
        trainer.train()
        trained.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-4, atol=1e-5)


def test_the_cache_setting_of_the_model_outlives_checkpointing(make) -> None:
    trainer = make(args={"gradient_checkpointing": True})
    trainer.train()
    assert trainer.model.config.use_cache is True


def test_noise_is_there_while_training_and_gone_afterwards(make) -> None:
    hooks = []

    class Looking(SFTTrainer):
        def training_step(self, model: Any, *given: Any) -> Any:
            hooks.append(len(model.get_input_embeddings()._forward_hooks))
            one, other = embeddings_twice(model.train())
            assert not torch.equal(one, other)
            return super().training_step(model, *given)

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("name", ["use_liger", "use_liger_kernel"])
def test_liger_where_it_cannot_work_is_an_error_that_says_why(make, name) -> None:
    with pytest.raises(ValueError, match=r"liger.*needs a GPU"):
        make(args={name: True})


def test_a_base_in_8_bits_carries_an_adapter(by_name, wide) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    options = {"load_in_8bit": True, "device_map": {"": "cpu"}}
    trainer = by_name(wide, LoraConfig(**LORA), model_init_kwargs=options)
    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert trainer.train().training_loss > 0
    assert any((p != 0).any() for name, p in trainer.model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_loaded_base_in_4_bits_carries_an_adapter(make, wide, wrapped) -> None:
    pytest.importorskip("bitsandbytes")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(wide, quantization_config=bits, device_map={"": "cpu"})
    config = LoraConfig(**LORA, target_modules="all-linear")
    if wrapped:  # the tutorials did it all, and gave the configuration once more
        base = get_peft_model(prepare_model_for_kbit_training(base), config)
    trainer = make(base, args={"gradient_checkpointing": True}, peft_config=config)
    assert trainer.train().training_loss > 0
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in trainer.model.named_parameters() if "lora" in name}
    assert any((p != 0).any() for name, p in trainer.model.named_parameters() if "lora_B" in name)


def test_a_base_in_8_bits_without_an_adapter_is_an_error(by_name, wide) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="adapter"):
        by_name(wide, model_init_kwargs={"load_in_8bit": True})


def test_a_model_of_several_parts_gets_labels_for_its_own_loss(config, rows, tokenizer) -> None:
    from transformers import DataCollatorForSeq2Seq, T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=320, decoder_start_token_id=2, pad_token_id=2, **sizes))

    def encoded(row: Any) -> dict[str, Any]:
        made = tokenizer(row["question"], return_token_type_ids=False)
        return {**made, "labels": tokenizer(row["answer"])["input_ids"]}

    given = rows.map(encoded, remove_columns=rows.column_names)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    args = config(per_device_eval_batch_size=7)
    trainer = SFTTrainer(
        model, args=args, data_collator=collator, train_dataset=given, eval_dataset=given, tokenizer=tokenizer
    )
    with torch.no_grad():
        expected = model.eval()(**collator([dict(row) for row in given])).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.train().training_loss == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("architecture", ["bloom", "opt", "gpt_neox"])
def test_packed_rows_train_any_model(make, rows, architecture) -> None:
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32} if architecture == "opt" else {}
    model = tiny_model(architecture, **more)
    trainer = make(model, args={"packing": True}, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    assert isinstance(trainer, Trainer)
    assert trainer.evaluate()["eval_loss"] > 0


def test_documents_that_cannot_be_kept_apart_see_each_other_and_that_is_told(make) -> None:
    trainer = make(tiny_model("bloom"), args={"packing": True})
    with pytest.warns(UserWarning, match="As in TRL, the documents of a packed row see each other"):
        trainer.train()
