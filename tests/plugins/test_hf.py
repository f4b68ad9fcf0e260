"""Loading models, adapters and tokenizers, and what is refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.errors import ConfigError, Problem
from sftkit.plugin.select import select
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.hf import HF


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that has trained one new token, with its tokenizer."""
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    base = HF().load_model(config=configured(checkpoint), options={})
    base.resize_token_embeddings(len(tokenizer))
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        init_lora_weights=False,
        trainable_token_indices={"model.embed_tokens": [320], "lm_head": [320]},
    )
    model = peft.get_peft_model(base, lora)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    torch.save(model(input_ids=torch.tensor([[5, 320]])).logits, tmp_path / "adapter" / "logits")
    return tmp_path / "adapter"


def configured(name: Path | str, **model: Any) -> Any:
    return tiny_config(model={"name": str(name), **model})


def problems(name: Path | str, **model: Any) -> list[Problem]:
    return run_problems(HF(), model={"name": str(name), **model})


def load(name: Path | str, options: dict[str, Any] | None = None, **model: Any) -> Any:
    return HF().load_model(config=configured(name, **model), options=options or {})


def load_adapter(name: Path) -> Any:
    """An adapter on its base model, loaded by the two hooks that do it in a run."""
    return HF().attach_adapter(model=load(name), config=configured(name))


def test_the_default_plugins_load_a_model_and_its_tokenizer(checkpoint: Path) -> None:
    plugins, wrong = select([])
    assert plugins is not None, wrong
    config = configured(checkpoint)
    assert not any(found for _, found in plugins.hook.check_run(config=config, plugins=plugins))
    tokenizer = plugins.hook.load_tokenizer(config=config)
    model = plugins.hook.load_model(config=config, options={})
    assert len(tokenizer) == model.config.vocab_size == 320


def test_loaded_weights_are_those_of_the_checkpoint(checkpoint: Path) -> None:
    assert all(torch.equal(a, b) for a, b in zip(load(checkpoint).parameters(), tiny_model().parameters(), strict=True))


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_weights_have_the_configured_dtype(checkpoint: Path, dtype: str, expected: torch.dtype) -> None:
    assert load(checkpoint, dtype=dtype).dtype == expected


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_model_options_reach_the_model(checkpoint: Path, init: str) -> None:
    assert load(checkpoint, {"attn_implementation": "eager"}, init=init).config._attn_implementation == "eager"


def test_random_weights_depend_on_the_seed_of_the_run(checkpoint: Path) -> None:
    def draw(**train: Any) -> torch.Tensor:
        config = tiny_config(model={"name": str(checkpoint), "init": "random"}, train=train)
        return HF().load_model(config=config, options={}).get_input_embeddings().weight

    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert torch.equal(draw(), draw(seed=42))


def test_random_weights_need_only_the_configurations(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    assert problems(checkpoint, init="random") == []
    model = load(checkpoint, init="random", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [1, 9]


def test_a_directory_without_weights_is_refused_at_check_and_at_load(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (problem,) = problems(checkpoint)
    assert "model.init=random" in problem.fix
    with pytest.raises(ConfigError, match=r"model\.init=random"):
        load(checkpoint)


def test_pickled_weights_are_refused_without_being_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"not even a pickle")
    (problem,) = problems(checkpoint)
    assert "pickles" in problem.what
    with pytest.raises(ConfigError, match="pickles"):
        load(checkpoint)


def test_truncated_weights_give_a_one_line_error(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError) as caught:
        load(checkpoint)
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 weights of LlamaForCausalLM, such as lm_head\.weight"):
        load(checkpoint)


def test_an_unknown_model_option_gives_a_one_line_error(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'attention'.*-> correct model\.options"):
        load(checkpoint, {"attention": "eager"})


def test_the_tokenizer_can_come_from_another_directory(checkpoint: Path, tmp_path: Path) -> None:
    tiny_tokenizer(vocab_size=300).save_pretrained(tmp_path / "other")
    config = configured(checkpoint, tokenizer=str(tmp_path / "other"))
    assert len(HF().load_tokenizer(config=config)) == 300


def test_a_tokenizer_that_cannot_be_loaded_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        HF().load_tokenizer(config=configured(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(ConfigError, match=r"is not a fast tokenizer -> set model\.tokenizer"):
        HF().load_tokenizer(config=configured(tmp_path))


@pytest.mark.parametrize("name", ["./runs/a", "/nowhere/model", "~/model", "a/b/c"])
def test_a_path_that_does_not_exist_is_a_problem(name: str) -> None:
    (problem,) = problems(name)
    assert f"no directory '{Path.cwd() / name}'" in problem.what


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B"])
def test_a_hub_name_is_accepted(name: str) -> None:
    assert problems(name) == []


def test_a_misspelt_directory_is_reported_with_the_nearest_name(checkpoint: Path) -> None:
    (problem,) = problems(checkpoint.with_name("bass"))
    assert problem.fix == "did you mean 'base'?"


def test_a_name_below_an_existing_directory_is_a_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert problems("base") == []
    assert len(problems("base/checkpoint-3")) == 1


def test_a_directory_without_a_model_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path)
    assert "neither a config.json nor an adapter_config.json" in problem.what


@pytest.mark.parametrize("key", ["revision", "dtype", "torch_dtype", "trust_remote_code", "use_safetensors"])
def test_options_that_are_keys_of_the_section_model_are_refused(key: str) -> None:
    (problem,) = problems("gpt2", options={key: "x", "attn_implementation": "eager"})
    assert problem.where == f"model.options.{key}"


def test_an_adapter_directory_loads_as_base_model_with_trainable_adapter(adapter: Path) -> None:
    model = load_adapter(adapter)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    expected = torch.load(adapter / "logits")
    assert torch.equal(model.eval()(input_ids=torch.tensor([[5, 320]])).logits, expected)


def test_a_further_trained_adapter_is_saved_without_whole_embeddings(adapter: Path, tmp_path: Path) -> None:
    load_adapter(adapter).save_pretrained(tmp_path / "again")
    sizes = [(path / "adapter_model.safetensors").stat().st_size for path in (adapter, tmp_path / "again")]
    assert sizes[0] == sizes[1]


def test_a_model_with_an_adapter_has_the_eos_of_its_tokenizer(adapter: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.eos_token = "<new>"
    tokenizer.save_pretrained(adapter)
    model = load_adapter(adapter)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (320, [320, 1])


def test_the_tokenizer_of_an_adapter_overrides_that_of_its_base(adapter: Path) -> None:
    assert len(HF().load_tokenizer(config=configured(adapter))) == 321
    (adapter / "tokenizer.json").unlink()
    (adapter / "tokenizer_config.json").unlink()
    assert len(HF().load_tokenizer(config=configured(adapter))) == 320


def test_an_adapter_with_a_whole_resized_embedding_can_be_loaded(checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = load(checkpoint)
    base.resize_token_embeddings(384)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    model.save_pretrained(tmp_path / "whole", save_embedding_layers=True)
    loaded = load_adapter(tmp_path / "whole")
    assert torch.equal(loaded.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_a_loaded_adapter_gets_gradients_under_checkpointing(adapter: Path) -> None:
    model = load_adapter(adapter).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if "lora_" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_an_adapter_directory_needs_no_further_plugin(adapter: Path) -> None:
    assert problems(adapter) == []


def test_a_missing_base_model_of_an_adapter_gives_a_one_line_error(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(ConfigError) as caught:
        load(adapter)
    assert "/nowhere/base" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_invalid_adapter_config_is_named(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: not a valid JSON object"):
        load(adapter)


def test_each_token_of_the_tokenizer_gets_an_embedding_row(checkpoint: Path) -> None:
    model, tokenizer = load(checkpoint), tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    assert HF().resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=[320]) is True
    assert model.get_input_embeddings().weight.shape[0] == 321
