"""Quantized base models: what is trained on them, with which gradients, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sftkit import Pipeline
from sftkit.errors import ConfigError, Problem, RunError
from sftkit.models.adapt import adapted_model
from sftkit.plugin.base import Plugin, dataclass, hookimpl
from sftkit.plugin.registry import discover, name_of
from sftkit.plugin.select import Choice, select
from sftkit.plugin.selected import PluginSet
from sftkit.testing import (
    CHATML,
    run_problems,
    tiny_config,
    tiny_conversations,
    tiny_model,
    tiny_tokenizer,
)
from sftkit_plugins.bitsandbytes import BitsAndBytes
from sftkit_plugins.neftune import NEFTune
from sftkit_plugins.packing import Packing
from sftkit_plugins.peft import PEFT

IDS = torch.randint(3, 320, (2, 16), generator=torch.Generator().manual_seed(0))
#: Values of the NormalFloat of 4 bits, from appendix E of the QLoRA paper.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
NF4_SINGLE: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@dataclass(frozen=True, kw_only=True)
class OwnAdapter(Plugin):
    """Prepares nothing, and adds LoRA."""

    @hookimpl
    def prepare_base(self) -> bool:
        """Does nothing."""
        return True

    @hookimpl
    def adapt_model(self, model: Any, config: Any) -> Any:
        """The model with LoRA."""
        return PEFT(r=4).adapt_model(model, config, [])


def plain_model(**options: Any) -> Any:
    """A tiny model whose layers are multiples of the block that is quantized together."""
    return tiny_model(**({"hidden_size": 64, "intermediate_size": 128, "head_dim": 32} | options))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    plain_model().save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)
    return directory


def quantized(base: Path, **settings: Any) -> Any:
    settings = settings or NF4_SINGLE
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(**settings))


def run(model: Any, directory: Path, plugins: list[Any], resume: bool = False, **train: Any) -> Any:
    """Forty steps of LoRA on a few conversations."""
    values = {"max_steps": 40, "learning_rate": 1e-2, "logging_steps": 10, "per_device_train_batch_size": 4}
    values |= {"eval_on_start": True, "eval_strategy": "no", "output_dir": str(directory)} | train
    tokenizer = None if isinstance(model, str | Path) else tiny_tokenizer(chat_template=CHATML)
    data = {"train": tiny_conversations(24), "eval": tiny_conversations(4, first=100)}
    config = {"data": {"max_length": 128}}
    return Pipeline(
        model=model,
        tokenizer=tokenizer,
        data=data["train"],
        eval=data["eval"],
        plugins=plugins,
        train=values,
        config=config,
        resume=resume,
    ).run()


def problems(name: Path | str = "given", plugins: tuple[str, ...] = ("peft",), **sections: Any) -> list[Problem]:
    plugin = BitsAndBytes(**sections.pop("options", {}))
    model = {"name": str(name), **sections.pop("model", {})}
    return run_problems(plugin, model=model, plugins={name: {} for name in plugins}, **sections)


def prepared(model: Any, **options: Any) -> Any:
    """The model with LoRA as a run adds it, but with random values instead of zeros in LoRA's second factor."""
    torch.manual_seed(0)
    return with_random_adapter(adapted(model, BitsAndBytes(**options), PEFT(r=4)))


def adapted(model: Any, *plugins: Plugin, **train: Any) -> Any:
    """The model as these plugins and the default ones prepare and adapt it."""
    config = tiny_config(model={"name": "loaded LlamaForCausalLM"}, train=train)
    return adapted_model(model, config, selected(*plugins), [])


def selected(*plugins: Plugin) -> PluginSet:
    found, wrong = select([Choice(name_of(type(plugin), discover()), instance=plugin) for plugin in plugins])
    assert found is not None, wrong
    return found


def with_random_adapter(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return model


def lora_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if "lora_" in name}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two gradients over all matrices."""
    assert found.keys() == expected.keys()
    return max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """The nearest values that 4 bits can represent, in blocks of 64 scaled by their maximum (QLoRA, section 3)."""
    blocks = weight.flatten().view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = (blocks[..., None] / scale[..., None] - values).abs().argmin(-1)
    return (values[nearest] * scale).view(weight.shape)


def dequantized_reference() -> Any:
    """The plain model with LoRA, its linear layers rounded to NF4 without bitsandbytes."""
    model = plain_model()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            module.weight.data = nf4(module.weight.data)
    torch.manual_seed(0)
    return with_random_adapter(PEFT(r=4).adapt_model(model, tiny_config(), []))


@pytest.mark.parametrize(
    ("options", "layer", "kind"),
    [({}, "Linear4bit", "Params4bit"), pytest.param({"bits": 8}, "Linear8bitLt", "Int8Params", marks=pytest.mark.slow)],
)
def test_lora_on_a_quantized_base_lowers_the_loss(
    base: Path, tmp_path: Path, options: dict[str, Any], layer: str, kind: str
) -> None:
    result = run(str(base), tmp_path / "run", [BitsAndBytes(**options), PEFT(r=4)])

    assert result.metrics["eval_loss"] < 0.85 * result.metrics["eval_loss_before"]
    inner = result.model.get_base_model().model.layers[0].mlp.down_proj.base_layer
    assert (type(inner).__name__, type(inner.weight).__name__) == (layer, kind)
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_four_bits_are_nf4_with_double_quantization_by_default(base: Path) -> None:
    settings = BitsAndBytes().model_options(config=tiny_config(model={"name": str(base)}))["quantization_config"]
    assert (settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant) == ("nf4", True)


@pytest.mark.parametrize(
    ("train", "options", "expected"),
    [
        ({}, {}, torch.float32),
        ({"bf16": True}, {}, torch.bfloat16),
        ({"fp16": True}, {}, torch.float16),
        ({"bf16": True}, {"compute_dtype": "float32"}, torch.float32),
    ],
)
def test_the_compute_dtype_is_that_of_mixed_precision(
    train: dict[str, Any], options: dict[str, Any], expected: torch.dtype
) -> None:
    settings = BitsAndBytes(**options).model_options(config=tiny_config(train=train))["quantization_config"]
    assert settings.bnb_4bit_compute_dtype == expected


def test_every_option_reaches_the_layers(base: Path) -> None:
    plugin = BitsAndBytes(quant_type="fp4", double_quant=False, quant_storage="float32", skip_modules=["down_proj"])
    options = plugin.model_options(config=tiny_config(model={"name": str(base)}))
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    block = model.model.layers[0]

    weight = block.mlp.up_proj.weight
    assert (weight.quant_type, weight.compress_statistics, weight.dtype) == ("fp4", False, torch.float32)
    assert type(block.mlp.down_proj) is nn.Linear
    assert type(model.lm_head) is nn.Linear


def test_the_threshold_of_eight_bits_reaches_the_layers(base: Path) -> None:
    options = BitsAndBytes(bits=8, threshold=3.5).model_options(config=tiny_config(model={"name": str(base)}))
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    assert model.model.layers[0].mlp.up_proj.state.threshold == 3.5


def test_each_process_loads_the_model_onto_its_own_device(base: Path) -> None:
    config = tiny_config(model={"name": str(base)}, train={"use_cpu": True})
    assert BitsAndBytes().model_options(config=config)["device_map"] == {"": "cpu"}
    config = tiny_config(model={"name": str(base), "options": {"device_map": "auto"}})
    assert "device_map" not in BitsAndBytes().model_options(config=config)


def test_gradients_equal_those_on_weights_rounded_to_nf4(base: Path) -> None:
    assert relative_error(lora_gradients(prepared(quantized(base))), lora_gradients(dequantized_reference())) < 1e-5


def has_avx512bf16() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


only_avx512bf16 = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes repacks weights only on a CPU with AVX512-BF16"
)


@only_avx512bf16
def test_gradients_stay_correct_after_an_evaluation(base: Path) -> None:
    model = prepared(quantized(base))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


@only_avx512bf16
def test_a_model_with_repacked_weights_is_refused(base: Path) -> None:
    model = quantized(base)
    logits(model)
    with pytest.raises(ConfigError, match=r"repacked its weights.*load it again"):
        prepared(model)


@only_avx512bf16
def test_repacked_weights_give_wrong_gradients(base: Path) -> None:
    torch.manual_seed(0)
    model = with_random_adapter(PEFT(r=4).adapt_model(quantized(base), tiny_config(), []))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) > 0.1


@pytest.mark.parametrize("settings", [pytest.param(NF4_SINGLE, marks=pytest.mark.slow), {"load_in_8bit": True}])
def test_a_loaded_model_is_prepared_without_being_changed(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = quantized(base, **settings)
    before = logits(copy.deepcopy(model))  # of copies: an evaluation repacks the weights

    result = run(model, tmp_path / "run", [BitsAndBytes(), PEFT(r=4)], max_steps=3)

    assert torch.equal(logits(copy.deepcopy(model)), before)
    assert not hasattr(model, "peft_config")
    assert result.model.is_loaded_in_8bit if "load_in_8bit" in settings else result.model.is_loaded_in_4bit


@pytest.mark.parametrize("settings", [NF4_SINGLE, pytest.param({"load_in_8bit": True}, marks=pytest.mark.slow)])
def test_a_loaded_model_needs_only_plugin_peft(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**settings)
    )
    result = run(model, tmp_path / "run", [PEFT(r=4)])

    assert result.metrics["eval_loss"] < 0.85 * result.metrics["eval_loss_before"]
    assert result.model.get_base_model().lm_head.weight.dtype == torch.float32
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_without_the_plugin_gradients_stay_correct_after_an_evaluation(base: Path) -> None:
    torch.manual_seed(0)
    model = with_random_adapter(adapted(quantized(base), PEFT(r=4)))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_the_run_gives_the_same_gradients(base: Path, reentrant: bool) -> None:
    torch.manual_seed(0)
    train = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model = with_random_adapter(adapted(quantized(base), PEFT(r=4), **train))
    model.gradient_checkpointing_enable(train["gradient_checkpointing_kwargs"])  # as the Trainer does
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


def test_experts_that_are_not_quantized_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain_model(architecture="mixtral").save_pretrained(tmp_path)
    prepared(quantized(tmp_path))
    (line,) = [line for line in caplog.messages if "bitsandbytes quantizes linear layers only" in line]
    assert "mlp.experts.gate_up_proj, and 3 such weights of experts, are not quantized" in line


def test_unquantized_weights_become_float32(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4_SINGLE)
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    with caplog.at_level(logging.INFO, logger="sftkit"):
        result = prepared(model)

    kept = {weight.dtype for weight in result.parameters() if type(weight).__name__ != "Params4bit"}
    assert kept == {torch.float32}
    assert "bitsandbytes: 4 bits, nf4; other weights were bfloat16 and become float32" in caplog.messages


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_the_saved_adapter_reloads_onto_the_quantized_base(base: Path, tmp_path: Path, bits: int) -> None:
    result = run(str(base), tmp_path / "run", [BitsAndBytes(bits=bits), PEFT(r=4)], max_steps=5)
    options = BitsAndBytes(bits=bits).model_options(config=tiny_config(model={"name": str(base)}))

    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), tmp_path / "run")

    torch.testing.assert_close(logits(again), logits(result.model), atol=2e-2, rtol=0)
    assert not list((tmp_path / "run").glob("model*.safetensors"))


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_an_adapter_is_trained_further_on_a_quantized_base(base: Path, tmp_path: Path, bits: int) -> None:
    run(str(base), tmp_path / "first", [BitsAndBytes(bits=bits), PEFT(r=4)], max_steps=10)

    result = run(str(tmp_path / "first"), tmp_path / "second", [BitsAndBytes(bits=bits)])

    assert result.metrics["eval_loss"] < result.metrics["eval_loss_before"]
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_a_quantized_checkpoint_keeps_its_bits(base: Path, tmp_path: Path) -> None:
    quantized(base, load_in_8bit=True).save_pretrained(tmp_path / "small")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "small")

    result = run(str(tmp_path / "small"), tmp_path / "run", [BitsAndBytes(), PEFT(r=4)], max_steps=2)

    assert result.model.is_loaded_in_8bit


@pytest.mark.slow
def test_it_trains_packed_rows_with_noise_and_new_tokens(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=4), Packing(), NEFTune(alpha=5), "chatml"]
    result = run(str(base), tmp_path / "run", plugins)

    assert len(result.tokenizer) > 320
    assert result.model.get_input_embeddings().weight.shape[0] == len(result.tokenizer)
    assert result.metrics["eval_loss"] < 0.9 * result.metrics["eval_loss_before"]


def test_checkpointing_by_the_plugin_gives_the_same_gradients(base: Path) -> None:
    model = prepared(quantized(base), use_gradient_checkpointing=True)
    assert model.get_base_model().model.gradient_checkpointing
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "adamw_bnb_8bit",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit")),
    ],
)
def test_eight_bit_optimizers_train_on_a_cpu(base: Path, tmp_path: Path, name: str) -> None:
    rate = 1e-3 if name == "lion_8bit" else 1e-2
    plugins = [BitsAndBytes(), PEFT(r=64)]  # fewer than 4096 weights keep a state in 32 bits
    result = run(
        str(base),
        tmp_path / "run",
        plugins,
        optim=name,
        learning_rate=rate,
        save_strategy="steps",
        max_steps=20,
        save_steps=20,
    )

    assert result.metrics["eval_loss"] < 0.95 * result.metrics["eval_loss_before"]
    saved = torch.load(tmp_path / "run" / "checkpoint-20" / "optimizer.pt", weights_only=False)["state"].values()
    moments = [item | item.get("__bnb_optimizer_quant_state__", {}) for item in saved]
    assert any(item["state1"].dtype == torch.uint8 for item in moments)


def test_a_resumed_run_equals_an_uninterrupted_one(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=64)]
    train = {"optim": "adamw_bnb_8bit", "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = run(str(base), tmp_path / "whole", plugins, max_steps=4, **train)
    run(str(base), tmp_path / "run", plugins, max_steps=2, **train)

    resumed = run(str(base), tmp_path / "run", plugins, resume=True, max_steps=4, **train)

    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]
    assert torch.equal(logits(resumed.model), logits(whole.model))


def test_it_trains_in_mixed_precision(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=4)]
    result = run(str(base), tmp_path / "run", plugins, max_steps=20, bf16=True, use_cpu=True)

    assert result.metrics["eval_loss"] < 0.95 * result.metrics["eval_loss_before"]
    trained = {weight.dtype for weight in result.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}


def test_a_paged_optimizer_is_refused_without_a_gpu() -> None:
    (problem,) = problems(train={"optim": "paged_adamw_8bit", "use_cpu": True})
    assert problem.fix == "set train.optim=adamw_bnb_8bit"
    assert problems(train={"optim": "adamw_bnb_8bit", "use_cpu": True}) == []


def test_a_base_without_an_adapter_is_refused_before_loading() -> None:
    (problem,) = problems(plugins=())
    assert problem.fix == "select a plugin that adds an adapter, as with -p peft"
    assert problems() == []


@pytest.mark.parametrize("plugins", [[BitsAndBytes()], []])
def test_a_loaded_base_without_an_adapter_is_refused_before_reading_data(base: Path, plugins: list[Any]) -> None:
    (problem,) = Pipeline(model=quantized(base), tokenizer=tiny_tokenizer(), data="none.json", plugins=plugins).check()
    assert problem.what == "quantized weights cannot be trained; add an adapter"


def test_a_quantized_checkpoint_without_an_adapter_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    quantized(base).save_pretrained(tmp_path / "small")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "small")
    with pytest.raises(RunError, match=r"quantized weights cannot be trained; add an adapter"):
        run(str(tmp_path / "small"), tmp_path / "run", [])


def test_a_plugin_can_prepare_the_base_itself(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4_SINGLE)
    )
    assert adapted(model, OwnAdapter()).get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_any_plugin_can_add_the_adapter() -> None:
    assert problems(plugins=(name_of(OwnAdapter, {}),)) == []


def test_a_loaded_model_that_is_not_quantized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not quantized by bitsandbytes"):
        run(plain_model(), tmp_path / "run", [BitsAndBytes(), PEFT()])


def test_a_loaded_model_with_other_bits_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="option bits: the model has 4"):
        run(quantized(base), tmp_path / "run", [BitsAndBytes(bits=8), PEFT()])


def test_a_quantized_output_head_is_refused(base: Path, tmp_path: Path) -> None:
    model = quantized(base, **NF4_SINGLE, llm_int8_skip_modules=["down_proj"])
    with pytest.raises(ConfigError, match="output head is quantized"):
        run(model, tmp_path / "run", [BitsAndBytes(), PEFT()])


@pytest.mark.parametrize(
    ("options", "option"), [({"threshold": 3.0}, "threshold"), ({"bits": 8, "quant_type": "nf4"}, "quant_type")]
)
def test_an_option_for_other_bits_is_refused(options: dict[str, Any], option: str) -> None:
    (problem,) = problems(options=options)
    assert problem.where == f"plugin bitsandbytes, option {option}"


def test_options_that_contradict_a_quantized_checkpoint_are_refused_before_loading(base: Path, tmp_path: Path) -> None:
    quantized(base, load_in_8bit=True).save_pretrained(tmp_path)
    (problem,) = problems(tmp_path, options={"bits": 4})
    assert "the checkpoint has 8 bits" in problem.what
    (problem,) = problems(tmp_path, options={"threshold": 3.0})
    assert problem.where == "plugin bitsandbytes, option threshold"

    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = problems(tmp_path)
    assert "already quantized by gptq" in problem.what


def test_random_weights_are_refused() -> None:
    (problem,) = problems(model={"init": "random"})
    assert problem.where == "model.init"


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_switched_on_twice_is_refused(key: str) -> None:
    (problem,) = problems(options={"use_gradient_checkpointing": True}, train={key: True})
    assert problem.where == f"train.{key}"


def test_checkpointing_is_refused_together_with_plugin_activations() -> None:
    options = {"use_gradient_checkpointing": True}
    assert [problem.where for problem in problems(plugins=("peft", "activations"), options=options)] == [
        "plugin activations"
    ]
