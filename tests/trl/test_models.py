"""Models of the trainer: by name or loaded, with adapters, quantized, checkpointed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DataCollatorForSeq2Seq

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import SFTTrainer

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}
SAVES = {"save_strategy": "steps", "save_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture
def by_name(named, config, rows):
    """Makes a trainer for a model passed by name."""

    def made(name: str = named, peft_config: Any = None, **options: Any) -> SFTTrainer:
        args = config(dataset_text_field="text", **options)
        return SFTTrainer(name, args=args, train_dataset=rows, eval_dataset=rows, peft_config=peft_config)

    return made


@pytest.fixture(scope="module")
def wide(tmp_path_factory, named) -> str:
    """The name of a model whose layers are wide enough to be quantized."""
    path = tmp_path_factory.mktemp("wide")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    for file in Path(named).glob("*token*"):
        (path / file.name).write_bytes(file.read_bytes())
    return str(path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_torch_dtype_is_the_type_of_a_model_passed_by_name(by_name, dtype) -> None:
    trainer = by_name(model_init_kwargs={"torch_dtype": dtype})
    assert trainer.model.dtype == trainer.model.config.torch_dtype == torch.bfloat16


@pytest.mark.parametrize("options", [None, {"torch_dtype": "auto"}, {"torch_dtype": None}], ids=str)
def test_a_model_passed_by_name_is_loaded_in_float32(by_name, options) -> None:
    assert by_name(model_init_kwargs=options).model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [-1, "float33"])
def test_an_unknown_torch_dtype_is_an_error(by_name, dtype) -> None:
    with pytest.raises(ValueError, match=f"Invalid `torch_dtype` passed to the SFTConfig.*but got {dtype}"):
        by_name(model_init_kwargs={"torch_dtype": dtype})


def test_model_init_kwargs_are_passed_to_from_pretrained(by_name) -> None:
    options = {"attn_implementation": "eager", "revision": "main", "trust_remote_code": False, "use_cache": False}
    trainer = by_name(model_init_kwargs={**options, "device_map": None, "quantization_config": None})
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.model.config.use_cache is False


def test_model_init_kwargs_with_a_loaded_model_are_an_error(make) -> None:
    with pytest.raises(ValueError, match=r"model_init_kwargs .* already instantiated"):
        make(args={"model_init_kwargs": {"torch_dtype": "float32"}})


def test_a_loaded_model_is_trained_in_place(make, weights, same) -> None:
    model = tiny_model()
    before = weights(model)
    trainer = make(model)
    trainer.train()
    assert trainer.model is model
    assert not same(before, weights(model))


@pytest.mark.slow
def test_several_trainers_train_one_model_in_turn(make) -> None:
    model = tiny_model()
    for options in ({}, {"packing": True}, {"neftune_noise_alpha": 5}, {"gradient_checkpointing": True}, {}):
        assert make(model, args=options).train().global_step == 2
    ids = torch.tensor([[1, 2, 3]])
    out = model(ids, labels=ids)
    assert (out.logits.shape, out.loss.ndim) == ((1, 3, 320), 0)  # the model is as before


def test_model_init_makes_a_new_model_for_each_training(config, rows, tokenizer) -> None:
    args = config(dataset_text_field="text")
    trainer = SFTTrainer(model_init=lambda: tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer)
    assert trainer.train().training_loss == trainer.train().training_loss


def test_only_the_adapter_is_trained_and_saved(by_name, tmp_path) -> None:
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


def test_training_continues_with_a_saved_adapter(by_name, make, named, tmp_path) -> None:
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


def test_a_model_with_an_adapter_is_trained_in_place(make) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))
    trainer = make(model)
    trainer.train()
    assert trainer.model is model
    assert any((p != 0).any() for name, p in model.named_parameters() if "lora_B" in name)


def test_peft_config_is_ignored_with_a_warning_for_a_peft_model(make) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))
    with pytest.warns(UserWarning, match="PeftModel already"):
        trainer = make(model, peft_config=LoraConfig(**{**LORA, "r": 2}))
    assert trainer.model is model
    assert trainer.model.peft_config["default"].r == 4


def test_a_base_with_adapter_layers_gets_the_adapter_of_peft_config(make) -> None:
    base = tiny_model()
    get_peft_model(base, LoraConfig(**LORA))  # puts its layers into the base itself
    trainer = make(base, peft_config=LoraConfig(**{**LORA, "r": 2}), args={"learning_rate": 1e-2})
    assert isinstance(trainer.model, PeftModel)
    assert trainer.model.peft_config["default"].r == 2
    trainer.train()
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any((p != 0).any() for name, p in trained.items() if "lora_B" in name)


def test_a_peft_config_of_the_wrong_type_is_an_error(make) -> None:
    with pytest.raises(ValueError, match="you need to pass a PeftConfig object"):
        make(peft_config={"r": 4})


def test_prompt_tuning_lowers_the_loss(make, rows) -> None:
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    trainer = make(args={"learning_rate": 0.1, "max_steps": 8}, peft_config=prompts, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_the_head_can_be_adapted_or_trained_with_an_adapter(make, options) -> None:
    trainer = make(args={"learning_rate": 1e-2}, peft_config=LoraConfig(task_type="CAUSAL_LM", **options))
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if "lm_head" in name and p.requires_grad}
    assert before
    trainer.train()
    now = dict(trainer.model.named_parameters())
    changed = [name for name, value in before.items() if not torch.equal(value, now[name])]
    assert any("lora_B" in name or "modules_to_save" in name for name in changed)


def test_frozen_layers_do_not_change(make) -> None:
    model = tiny_model()
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad = False
    make(model, args={"learning_rate": 1e-2}).train()
    other = tiny_model()
    same = [torch.equal(a, b) for a, b in zip(model.model.parameters(), other.model.parameters(), strict=True)]
    frozen = [not parameter.requires_grad for parameter in model.model.parameters()]
    assert same == frozen


def test_a_pad_token_without_an_embedding_does_no_harm(make) -> None:
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_model(vocab_size=len(tokenizer) - 1)
    assert make(model, tokenizer=tokenizer).train().training_loss > 0


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("reentrant", "packing"),
    [(None, True), *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in (False, True))],
)
def test_gradient_checkpointing_gives_the_same_weights(make, adapter, reentrant, packing) -> None:
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


def test_the_models_use_cache_is_restored_after_training(make) -> None:
    trainer = make(args={"gradient_checkpointing": True})
    trainer.train()
    assert trainer.model.config.use_cache is True


@pytest.mark.parametrize(("name", "layer"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_an_adapter_is_trained_on_a_base_loaded_in_few_bits(by_name, wide, name, layer) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    options = {"load_in_8bit": False, "load_in_4bit": False, "device_map": {"": "cpu"}, "torch_dtype": torch.float32}
    trainer = by_name(wide, LoraConfig(**LORA), model_init_kwargs={**options, name: True})
    assert any(isinstance(module, getattr(bitsandbytes.nn, layer)) for module in trainer.model.modules())
    assert trainer.train().training_loss > 0
    assert any((p != 0).any() for name, p in trainer.model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_adapter_is_trained_on_a_loaded_4_bit_base(make, wide, wrapped) -> None:
    pytest.importorskip("bitsandbytes")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(wide, quantization_config=bits, device_map={"": "cpu"})
    config = LoraConfig(**LORA, target_modules="all-linear")
    if wrapped:  # tutorials did both, and passed the configuration again
        base = get_peft_model(prepare_model_for_kbit_training(base), config)
    trainer = make(base, args={"gradient_checkpointing": True}, peft_config=config)
    assert trainer.train().training_loss > 0
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in trainer.model.named_parameters() if "lora" in name}
    assert any((p != 0).any() for name, p in trainer.model.named_parameters() if "lora_B" in name)


def test_an_8_bit_base_without_an_adapter_is_an_error(by_name, wide) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="adapter"):
        by_name(wide, model_init_kwargs={"load_in_8bit": True})


def test_an_encoder_decoder_model_computes_its_own_loss(config, rows, tokenizer) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=320, decoder_start_token_id=2, pad_token_id=2, **sizes))

    def encoded(row: Any) -> dict[str, Any]:
        made = tokenizer(row["question"], return_token_type_ids=False)
        return {**made, "labels": tokenizer(row["answer"])["input_ids"]}

    data = rows.map(encoded, remove_columns=rows.column_names)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    args = config(per_device_eval_batch_size=7)
    trainer = SFTTrainer(
        model, args=args, data_collator=collator, train_dataset=data, eval_dataset=data, tokenizer=tokenizer
    )
    with torch.no_grad():
        expected = model.eval()(**collator([dict(row) for row in data])).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.train().training_loss == pytest.approx(expected, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
@pytest.mark.parametrize("name", ["use_liger", "use_liger_kernel"])
def test_liger_without_a_gpu_is_an_error(make, name) -> None:
    with pytest.raises(ValueError, match=r"liger.*needs a GPU"):
        make(args={name: True})
