"""Base models in 4 and 8 bits: what is trained on them, with which gradients, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
import shutil
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
from sftkit.errors import ConfigError, Problem
from sftkit.models.adapt import adapted_model
from sftkit.plugin.base import Plugin, dataclass, hookimpl
from sftkit.testing import CHATML, check_plugin, tiny_config, tiny_conversations, tiny_model, tiny_tokenizer
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
    data = {"train": tiny_conversations(24), "eval": tiny_conversations(4)}
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
    options = sections.pop("options", {})
    model = {"name": str(name), **sections.pop("model", {})}
    config = tiny_config(model=model, plugins={name: {} for name in ("bitsandbytes", *plugins)}, **sections)
    return list(BitsAndBytes(**options).check_run(config=config))


def prepared(model: Any, **options: Any) -> Any:
    """The model with LoRA on it, as a run puts it there; LoRA's second factor is not left at zero."""
    config = tiny_config(model={"name": "loaded LlamaForCausalLM"})
    torch.manual_seed(0)
    plugins = check_plugin_pair(BitsAndBytes(**options), PEFT(r=4))
    return with_drawn_adapter(adapted_model(model, config, plugins, []))


def check_plugin_pair(*plugins: Any) -> Any:
    from sftkit.plugin.registry import discover as known
    from sftkit.plugin.registry import name_of
    from sftkit.plugin.select import Choice, select

    found, wrong = select([Choice(name_of(type(plugin), known()), instance=plugin) for plugin in plugins])
    assert found is not None, wrong
    return found


def with_drawn_adapter(model: Any) -> Any:
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
    """The largest over the matrices of the distance of two gradients, as a share of the expected one."""
    assert found.keys() == expected.keys()
    return max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """The nearest values that 4 bits can hold: blocks of 64, scaled by their largest magnitude (QLoRA, section 3)."""
    blocks = weight.flatten().view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = (blocks[..., None] / scale[..., None] - values).abs().argmin(-1)
    return (values[nearest] * scale).view(weight.shape)


def dequantized_reference() -> Any:
    """The plain model with its linear layers' weights rounded to NF4 without bitsandbytes, and LoRA on it."""
    model = plain_model()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            module.weight.data = nf4(module.weight.data)
    torch.manual_seed(0)
    return with_drawn_adapter(PEFT(r=4).adapt_model(model, []))


def test_the_plugin_passes_the_checks_of_a_run() -> None:
    check_plugin(BitsAndBytes())


@pytest.mark.parametrize(
    ("options", "layer", "kind"), [({}, "Linear4bit", "Params4bit"), ({"bits": 8}, "Linear8bitLt", "Int8Params")]
)
def test_lora_is_trained_on_a_base_in_few_bits_and_the_loss_falls(
    base: Path, tmp_path: Path, options: dict[str, Any], layer: str, kind: str
) -> None:
    result = run(str(base), tmp_path / "run", [BitsAndBytes(**options), PEFT(r=4)])

    assert result.metrics["eval_loss"] < 0.85 * result.metrics["eval_loss_before"]
    inner = result.model.get_base_model().model.layers[0].mlp.down_proj.base_layer
    assert (type(inner).__name__, type(inner.weight).__name__) == (layer, kind)
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_four_bits_are_nf4_with_double_quantization_unless_told_otherwise(base: Path) -> None:
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
def test_products_are_computed_in_the_runs_mixed_precision(
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


def test_each_process_holds_the_model_on_its_own_device(base: Path) -> None:
    config = tiny_config(model={"name": str(base)}, train={"use_cpu": True})
    assert BitsAndBytes().model_options(config=config)["device_map"] == {"": "cpu"}
    config = tiny_config(model={"name": str(base), "options": {"device_map": "auto"}})
    assert "device_map" not in BitsAndBytes().model_options(config=config)


def test_gradients_on_four_bits_are_those_on_the_rounded_weights(base: Path) -> None:
    assert relative_error(lora_gradients(prepared(quantized(base))), lora_gradients(dequantized_reference())) < 1e-5


def has_avx512bf16() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


only_avx512bf16 = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes repacks weights only on a CPU with AVX512-BF16"
)


@only_avx512bf16
def test_gradients_right_after_an_evaluation_are_still_those(base: Path) -> None:
    model = prepared(quantized(base))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


@only_avx512bf16
def test_a_model_that_was_evaluated_before_the_run_is_refused(base: Path) -> None:
    model = quantized(base)
    logits(model)
    with pytest.raises(ConfigError, match=r"repacked its weights.*load it anew"):
        prepared(model)


@only_avx512bf16
def test_without_that_care_such_gradients_would_be_wrong(base: Path) -> None:
    torch.manual_seed(0)
    model = with_drawn_adapter(PEFT(r=4).adapt_model(quantized(base), []))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) > 0.1


@pytest.mark.parametrize("settings", [NF4_SINGLE, {"load_in_8bit": True}])
def test_a_loaded_model_is_prepared_too_and_never_changed(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = quantized(base, **settings)
    before = logits(copy.deepcopy(model))  # of copies: an evaluation repacks the weights

    result = run(model, tmp_path / "run", [BitsAndBytes(), PEFT(r=4)], max_steps=3)

    assert torch.equal(logits(copy.deepcopy(model)), before)
    assert not hasattr(model, "peft_config")
    assert result.model.is_loaded_in_8bit if "load_in_8bit" in settings else result.model.is_loaded_in_4bit


@pytest.mark.parametrize("settings", [NF4_SINGLE, {"load_in_8bit": True}])
def test_a_loaded_model_is_prepared_without_the_plugin_too(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**settings)
    )
    result = run(model, tmp_path / "run", [PEFT(r=4)])

    assert result.metrics["eval_loss"] < 0.85 * result.metrics["eval_loss_before"]
    assert result.model.get_base_model().lm_head.weight.dtype == torch.float32
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_gradients_of_a_loaded_model_are_right_after_an_evaluation_without_the_plugin_too(base: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config(model={"name": "loaded LlamaForCausalLM"})
    model = with_drawn_adapter(adapted_model(quantized(base), config, check_plugin_pair(PEFT(r=4)), []))
    logits(model)
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_the_run_give_the_same_gradients(base: Path, reentrant: bool) -> None:
    torch.manual_seed(0)
    train = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    config = tiny_config(model={"name": "loaded LlamaForCausalLM"}, train=train)
    model = with_drawn_adapter(adapted_model(quantized(base), config, check_plugin_pair(PEFT(r=4)), []))
    model.gradient_checkpointing_enable(train["gradient_checkpointing_kwargs"])  # as the Trainer does
    assert relative_error(lora_gradients(model), lora_gradients(dequantized_reference())) < 1e-5


def test_what_is_not_quantized_becomes_float32(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4_SINGLE)
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    with caplog.at_level(logging.INFO, logger="sftkit"):
        adapted = prepared(model)

    kept = {weight.dtype for weight in adapted.parameters() if type(weight).__name__ != "Params4bit"}
    assert kept == {torch.float32}
    assert "bitsandbytes: 4 bits, nf4; other weights were bfloat16 and become float32" in caplog.messages


@pytest.mark.parametrize("bits", [4, 8])
def test_the_saved_adapter_gives_the_trained_model_again(base: Path, tmp_path: Path, bits: int) -> None:
    result = run(str(base), tmp_path / "run", [BitsAndBytes(bits=bits), PEFT(r=4)], max_steps=5)
    options = BitsAndBytes(bits=bits).model_options(config=tiny_config(model={"name": str(base)}))

    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), tmp_path / "run")

    torch.testing.assert_close(logits(again), logits(result.model), atol=2e-2, rtol=0)
    assert not list((tmp_path / "run").glob("model*.safetensors"))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_is_trained_on_over_a_base_in_few_bits(base: Path, tmp_path: Path, bits: int) -> None:
    run(str(base), tmp_path / "first", [BitsAndBytes(bits=bits), PEFT(r=4)], max_steps=10)

    result = run(str(tmp_path / "first"), tmp_path / "second", [BitsAndBytes(bits=bits)])

    assert result.metrics["eval_loss"] < result.metrics["eval_loss_before"]
    assert all("lora_" in name for name, weight in result.model.named_parameters() if weight.requires_grad)


def test_a_checkpoint_in_few_bits_needs_no_option(base: Path, tmp_path: Path) -> None:
    quantized(base, load_in_8bit=True).save_pretrained(tmp_path / "small")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "small")

    result = run(str(tmp_path / "small"), tmp_path / "run", [BitsAndBytes(), PEFT(r=4)], max_steps=2)

    assert result.model.is_loaded_in_8bit


def test_it_trains_packed_rows_with_noise_and_new_tokens(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=4), Packing(), NEFTune(alpha=5), "chatml"]
    result = run(str(base), tmp_path / "run", plugins)

    assert len(result.tokenizer) > 320
    assert result.model.get_input_embeddings().weight.shape[0] == len(result.tokenizer)
    assert result.metrics["eval_loss"] < 0.85 * result.metrics["eval_loss_before"]


def test_recomputed_activations_give_the_same_gradients(base: Path) -> None:
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
def test_optimizers_with_a_state_in_eight_bits_train_on_a_cpu(base: Path, tmp_path: Path, name: str) -> None:
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


def test_a_resumed_run_ends_as_an_undisturbed_one(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=64)]
    train = {"optim": "adamw_bnb_8bit", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run(str(base), tmp_path / "run", plugins, **train)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")

    resumed = run(str(base), tmp_path / "run", plugins, resume=True, **train)

    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]
    assert torch.equal(logits(resumed.model), logits(whole.model))


def test_it_trains_in_mixed_precision(base: Path, tmp_path: Path) -> None:
    plugins = [BitsAndBytes(), PEFT(r=4)]
    result = run(str(base), tmp_path / "run", plugins, max_steps=20, bf16=True, use_cpu=True)

    assert result.metrics["eval_loss"] < 0.95 * result.metrics["eval_loss_before"]
    trained = {weight.dtype for weight in result.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}


def test_a_paged_optimizer_is_refused_where_there_is_no_gpu() -> None:
    (problem,) = problems(train={"optim": "paged_adamw_8bit", "use_cpu": True})
    assert problem.fix == "set train.optim=adamw_bnb_8bit"
    assert problems(train={"optim": "adamw_bnb_8bit", "use_cpu": True}) == []


def test_a_base_without_an_adapter_is_refused_before_it_is_loaded() -> None:
    (problem,) = problems(plugins=())
    assert "select a plugin that puts an adapter on it, as in -p peft" in problem.fix
    assert problems() == []


@pytest.mark.parametrize("plugins", [[BitsAndBytes()], []])
def test_a_loaded_base_without_an_adapter_is_refused_before_anything_is_read(base: Path, plugins: list[Any]) -> None:
    (problem,) = Pipeline(model=quantized(base), tokenizer=tiny_tokenizer(), data="none.json", plugins=plugins).check()
    assert "there is no adapter" in problem.what
    assert "-p peft" in problem.fix


def test_a_checkpoint_in_few_bits_without_an_adapter_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    quantized(base).save_pretrained(tmp_path / "small")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"there is no adapter.*-p peft"):
        run(str(tmp_path / "small"), tmp_path / "run", [])


def test_a_plugin_that_loads_and_adapts_prepares_in_its_own_way(base: Path) -> None:
    class Own(Plugin):
        """Loads and adapts."""

        @hookimpl
        def load_model(self, config: Any) -> None:
            """Not called."""

        @hookimpl
        def adapt_model(self, model: Any) -> Any:
            """As peft, without its care."""
            return PEFT(r=4).adapt_model(model, [])

    own = check_plugin_pair(dataclass(frozen=True, kw_only=True)(Own)())
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4_SINGLE)
    )
    assert adapted_model(model, tiny_config(), own, []).get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_a_plugin_of_ones_own_may_put_the_adapter_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("own_adapter")
    module.Own = type("Own", (), {"adapt_model": lambda self, model: model})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_adapter", module)
    assert problems(plugins=("own_adapter:Own",)) == []


def test_a_loaded_model_in_full_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not quantized by bitsandbytes"):
        run(plain_model(), tmp_path / "run", [BitsAndBytes(), PEFT()])


def test_a_loaded_model_in_other_bits_than_asked_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="option bits: the model has 4"):
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


def test_a_checkpoint_that_is_quantized_otherwise_is_refused_before_it_is_loaded(base: Path, tmp_path: Path) -> None:
    quantized(base, load_in_8bit=True).save_pretrained(tmp_path)
    (problem,) = problems(tmp_path, options={"bits": 4})
    assert "quantized already, in 8 bits" in problem.what
    (problem,) = problems(tmp_path, options={"threshold": 3.0})
    assert problem.where == "plugin bitsandbytes, option threshold"

    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = problems(tmp_path)
    assert "quantized already, by gptq" in problem.what


def test_random_weights_are_refused() -> None:
    (problem,) = problems(model={"init": "random"})
    assert problem.where == "model.init"


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_that_is_set_twice_is_refused(key: str) -> None:
    (problem,) = problems(options={"use_gradient_checkpointing": True}, train={key: True})
    assert problem.where == f"train.{key}"


def test_checkpointing_beside_the_plugin_that_chooses_it_is_refused() -> None:
    options = {"use_gradient_checkpointing": True}
    assert [problem.where for problem in problems(plugins=("peft", "activations"), options=options)] == [
        "plugin activations"
    ]
