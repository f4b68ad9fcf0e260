"""The quantized model: close to the trained one, reloadable, calibrated on its data; and what is refused in time."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

# Looked for, not imported: importing gptqmodel changes other libraries.
if not all(map(importlib.util.find_spec, ("optimum", "gptqmodel"))):
    pytest.skip("needs the extra gptq", allow_module_level=True)
pytest.importorskip("peft")

from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

from sftkit import Pipeline
from sftkit.errors import ConfigError, Problem, RunError
from sftkit.testing import (
    CHATML,
    packed_rows,
    plugin_set,
    run_problems,
    tiny_config,
    tiny_conversations,
    tiny_model,
    tiny_tokenizer,
)
from sftkit_plugins.gptq import GPTQ
from sftkit_plugins.gptq.calibration import Calibration, check_layers, documents, draw
from sftkit_plugins.gptq.export import work
from sftkit_plugins.packing import Packing
from sftkit_plugins.peft import PEFT

IDS = torch.randint(3, 320, (2, 16), generator=torch.Generator().manual_seed(0))
SMALL = {"group_size": 32, "rows": 16}


def plain_model(**options: Any) -> Any:
    """A tiny model whose layers are multiples of 32 in both directions."""
    return tiny_model(**({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16} | options))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    plain_model().save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)
    return directory


def run(model: Any, directory: Path, plugins: list[Any], **train: Any) -> Any:
    values = {"max_steps": 10, "learning_rate": 1e-2, "output_dir": str(directory)} | train
    config = {"data": {"max_length": 128}}
    return Pipeline(model=str(model), data=tiny_conversations(24), plugins=plugins, train=values, config=config).run()


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that trains an adapter with new tokens on packed rows, and quantizes the model to 4 bits."""
    plugins = [PEFT(r=4), Packing(), "chatml", GPTQ(**SMALL)]
    return run(base, tmp_path_factory.mktemp("runs") / "lora", plugins)


@pytest.fixture(scope="module")
def gptq_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, as this plugin writes it after full training."""
    result = run(base, tmp_path_factory.mktemp("runs") / "full", [GPTQ(**SMALL)])
    return result.directory / "gptq"


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


def problems(name: Path | str = "given", train: Any = None, **options: Any) -> list[Problem]:
    return run_problems(GPTQ(**options), model={"name": str(name)}, train=train or {})


def rounded_to_nearest(model: Any, bits: int = 4, group: int = 32) -> Any:
    """The model with the layers of its blocks rounded to evenly spaced values, without calibration."""
    model = copy.deepcopy(model)
    for layer in model.model.layers.modules():
        if type(layer) is torch.nn.Linear:
            weight = layer.weight.data.view(-1, group)
            step = weight.abs().amax(1, keepdim=True) * 2 / (2**bits - 1)
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            layer.weight.data = ((weight / step).round().clamp(low, high) * step).view_as(layer.weight)
    return model


def distance(found: Any, expected: Any, tokenizer: Any) -> float:
    """Root mean square of the difference of the logits on the training data, as a share of their spread."""
    differences, values = [], []
    for row in tiny_conversations(24):
        ids = torch.tensor([tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]])
        values.append(logits(expected, ids).flatten())
        differences.append(logits(found, ids).flatten() - values[-1])
    return (torch.cat(differences).pow(2).mean().sqrt() / torch.cat(values).std()).item()


def reloaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=GPTQConfig(bits=4, backend="torch"))


def with_random_adapter(model: Any) -> Any:
    """The model with LoRA, with values that do not depend on the order of its layers."""
    adapted = PEFT(r=4).adapt_model(model, tiny_config(), [])
    generator = torch.Generator().manual_seed(1)
    for name, weight in sorted(adapted.named_parameters()):
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return adapted


def lora_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if "lora_" in name}


@pytest.mark.slow
def test_a_quantized_model_is_close_to_the_fully_trained_one(base: Path, gptq_base: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(gptq_base.parent)
    tokenizer = AutoTokenizer.from_pretrained(gptq_base)
    assert distance(reloaded(gptq_base), whole, tokenizer) < 0.05
    assert distance(reloaded(gptq_base), whole, tokenizer) < distance(rounded_to_nearest(whole), whole, tokenizer)


@pytest.mark.slow
def test_an_adapter_with_new_tokens_is_merged_and_quantized(trained: Any) -> None:
    whole = copy.deepcopy(trained.model).merge_and_unload()
    small = reloaded(trained.directory / "gptq")
    tokenizer = AutoTokenizer.from_pretrained(trained.directory / "gptq")

    assert type(small.model.layers[0].mlp.up_proj).__name__ == "TorchLinear"
    assert len(tokenizer) == 322
    assert distance(small, whole, tokenizer) < 0.05
    assert distance(small, whole, tokenizer) < 0.5 * distance(rounded_to_nearest(whole), whole, tokenizer)


@pytest.mark.slow
def test_quantizing_does_not_change_the_trained_model(trained: Any, base: Path) -> None:
    saved = AutoPeftModelForCausalLM.from_pretrained(trained.directory)
    assert hasattr(trained.model, "peft_config")
    torch.testing.assert_close(logits(trained.model), logits(saved), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_quantized_model_loads_without_options_and_generates(trained: Any) -> None:
    directory = trained.directory / "gptq"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer("What is 3 plus one?", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape[1] == prompt["input_ids"].shape[1] + 4


@pytest.mark.slow
def test_no_training_data_is_left_with_the_quantized_model(trained: Any) -> None:
    directory = trained.directory / "gptq"
    assert not (directory / "calibration.json").exists()
    assert not (directory / "merged").exists()
    for name in ("config.json", "quantize_config.json"):
        settings = json.loads((directory / name).read_text())
        assert (settings.get("quantization_config") or settings)["dataset"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"bits": 8}, {"bits": 3, "sym": False}, {"desc_act": True}, {"group_size": -1}, {"sym": False}]
)
def test_every_setting_reloads_with_similar_logits(gptq_base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plugin = GPTQ(**(SMALL | options))
    task = {"settings": plugin.settings(), "trust_remote_code": False, "rows": [IDS[0].tolist()] * 8}
    (tmp_path / "calibration.json").write_text(json.dumps(task))
    work("quantize", gptq_base.parent, tmp_path)

    whole = AutoModelForCausalLM.from_pretrained(gptq_base.parent)
    small = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=GPTQConfig(bits=plugin.bits, backend="torch")
    )
    found, expected = logits(small, IDS[:1]), logits(whole, IDS[:1])
    assert ((found - expected).pow(2).mean().sqrt() / expected.std()).item() < 0.1


@pytest.mark.slow
def test_lora_is_trained_on_a_four_bit_base(gptq_base: Path, tmp_path: Path) -> None:
    plugins = [GPTQ(export=False), PEFT(r=4), Packing()]
    train = {"max_steps": 20, "logging_steps": 1}
    result = run(gptq_base, tmp_path / "run", plugins, **train)

    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[19] < losses[0]
    inner = result.model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert type(inner).__name__ == "TorchLinear"
    assert not (tmp_path / "run" / "gptq").exists()


@pytest.mark.slow
def test_gradients_equal_those_on_dequantized_weights_after_an_evaluation(gptq_base: Path) -> None:
    options = GPTQ(export=False).model_options(config=tiny_config(model={"name": str(gptq_base)}))
    small = AutoModelForCausalLM.from_pretrained(gptq_base, **options)
    whole = AutoModelForCausalLM.from_pretrained(gptq_base.parent)
    for name, layer in whole.model.layers.named_modules():
        if type(layer) is torch.nn.Linear:
            layer.weight.data = small.model.layers.get_submodule(name).dequantize_weight().T.float().contiguous()
    expected = lora_gradients(with_random_adapter(whole))

    adapted = with_random_adapter(small)
    logits(adapted)

    found = lora_gradients(adapted)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_four_bit_base_without_an_adapter_is_refused(gptq_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantized weights cannot be trained; add an adapter"):
        run(gptq_base, tmp_path / "run", [GPTQ(export=False)])


@pytest.mark.slow
def test_a_quantized_base_is_refused_before_loading(gptq_base: Path) -> None:
    (problem,) = problems(gptq_base)
    assert problem.fix == "set export=false to train an adapter on it"
    assert problems(gptq_base, export=False) == []


def test_an_unquantized_base_without_export_is_refused(base: Path) -> None:
    (problem,) = problems(base, export=False)
    assert "nothing to do" in problem.what


def test_a_width_not_divisible_into_groups_is_refused_before_loading(base: Path) -> None:
    (problem,) = problems(base)
    assert problem.what == "hidden_size is 64, which is not divisible by 128"
    assert problem.fix == "set group_size=64"
    assert problems(base, group_size=64) == problems(base, group_size=-1) == []


def test_sharded_weights_are_refused() -> None:
    pytest.importorskip("deepspeed")
    (problem,) = run_problems(GPTQ(), model={"name": "given"}, plugins={"deepspeed": {}})
    assert (problem.what, problem.where) == (
        "the weights are sharded, but a single process quantizes them",
        "plugin deepspeed",
    )


def test_it_is_refused_together_with_bitsandbytes() -> None:
    from sftkit.plugin.select import Choice, select

    pytest.importorskip("bitsandbytes")
    _, found = select([Choice("gptq"), Choice("bitsandbytes"), Choice("peft")])
    assert [problem.what for problem in found] == ["plugins gptq and bitsandbytes cannot be used together"]


@pytest.mark.parametrize("method", [None, "gptq"])
def test_a_base_that_contradicts_the_option_export_is_refused(method: str | None) -> None:
    model = plain_model()
    if method:
        model.config.quantization_config = {"quant_method": method}
    hook = plugin_set(GPTQ(export=method is not None)).hook
    with pytest.raises(ConfigError, match="option export: "):
        hook.adapt_model(model=model, config=tiny_config(), new_token_ids=[])


def test_layers_are_checked_by_optimum_before_training(tmp_path: Path) -> None:
    task = {"settings": GPTQ(**SMALL).settings(), "trust_remote_code": False, "rows": []}
    (tmp_path / "calibration.json").write_text(json.dumps(task))
    with pytest.raises(ConfigError) as caught:
        check_layers(tiny_model(hidden_size=64, intermediate_size=112, head_dim=8), tmp_path)
    message = str(caught.value)
    assert "model.layers.0.self_attn.k_proj is 64 by 16, but the kernels need multiples of 32" in message
    assert "model.layers.1.mlp.down_proj is 112 by 64" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options", "what"),
    [
        ("gpt2", {"n_embd": 64}, "is a Conv1D, which could not be loaded again once quantized"),
        ("mixtral", {"num_local_experts": 2}, "holds the matrices of several experts"),
    ],
)
def test_layers_that_cannot_be_quantized_are_refused(
    tmp_path: Path, architecture: str, options: dict[str, Any], what: str
) -> None:
    task = {"settings": GPTQ(**SMALL).settings(), "trust_remote_code": False, "rows": []}
    (tmp_path / "calibration.json").write_text(json.dumps(task))
    sizes = {"hidden_size": 64, "head_dim": 16} if architecture == "mixtral" else {}
    with pytest.raises(ConfigError, match=what):
        check_layers(tiny_model(architecture, **(sizes | options)), tmp_path)


def test_an_adapter_that_cannot_be_merged_is_refused_before_training(tmp_path: Path) -> None:
    model = PEFT(method="prompt_tuning").adapt_model(plain_model(), tiny_config(), [])
    with pytest.raises(ConfigError, match="cannot be merged"):
        check_layers(model, tmp_path)


def test_calibration_documents_depend_on_the_seed_of_the_run() -> None:
    data = [{"input_ids": [number] * 9, "labels": [number] * 9} for number in range(50)]
    drawn = draw(data, 10, 4, seed=1)
    assert [len(row) for row in drawn] == [4] * 10
    assert len({row[0] for row in drawn}) == 10
    assert drawn == draw(data, 10, 4, seed=1)
    assert drawn != draw(data, 10, 4, seed=2)


def test_too_few_calibration_documents_are_refused() -> None:
    data = [{"input_ids": [1, 2, 3]}] * 5
    with pytest.raises(ConfigError, match=r"has 5 documents, but calibration needs 6 -> set rows to at most 5"):
        draw(data, 6, 8, seed=0)


def test_the_first_documents_of_a_stream_are_taken() -> None:
    stream = iter([{"input_ids": [number, number]} for number in range(9)])
    assert draw(stream, 3, 8, seed=0) == [[0, 0], [1, 1], [2, 2]]


def test_packed_rows_are_split_into_documents() -> None:
    rows = [{"input_ids": [number] * (number + 2), "labels": [number] * (number + 2)} for number in range(6)]
    packed = packed_rows(Packing(), rows, max_length=16)
    assert packed is not None
    assert len(packed) < len(rows)
    found = sorted(document for example in packed for document in documents(example))
    assert found == [row["input_ids"] for row in rows]


def test_an_error_of_the_quantizing_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("not JSON")
    with pytest.raises(RunError, match=r"quantizing failed: json\.decoder\.JSONDecodeError.*quantize\.log"):
        work("quantize", tmp_path, tmp_path)


def test_without_export_there_is_no_calibration() -> None:
    assert GPTQ(export=False).trainer_callbacks(config=tiny_config()) == []
    (callback,) = GPTQ().trainer_callbacks(config=tiny_config())
    assert isinstance(callback, Calibration)
