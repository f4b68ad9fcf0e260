"""Adapters: what is trained and saved, and that transformers and peft alone reload the same model."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sftkit import Pipeline
from sftkit.errors import ConfigError, Problem
from sftkit.models.embeddings import grow_embeddings
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.peft import PEFT

NEW = ["<|im_start|>", "<|im_end|>"]
IDS = torch.tensor([[0, 5, 6, 320, 7, 8, 321, 9]])
METHODS = ["lora", "ia3", "vera", "prompt_tuning"]


def adapt(model: Any, new_token_ids: list[int] | None = None, **options: Any) -> Any:
    return PEFT(**options).adapt_model(model, tiny_config(), new_token_ids or [])


def problems(plugins: dict[str, Any] | None = None, **options: Any) -> list[Problem]:
    return run_problems(PEFT(**options), plugins=plugins or {})


def extended_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(NEW, special_tokens=True)
    return tokenizer


def step(model: Any, ids: torch.Tensor) -> None:
    """One large step of plain gradient descent."""
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
                parameter.grad = None


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


def base_with_new_tokens(directory: Path, architecture: str = "llama", **options: Any) -> Any:
    """A model from its directory, with rows for the two new tokens."""
    tiny_model(architecture, **options).save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    grow_embeddings(model, extended_tokenizer(), [320, 321])
    return model


def saved(directory: Path) -> dict[str, torch.Size]:
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        return {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def test_lora_adapts_every_linear_layer_but_the_head() -> None:
    model = adapt(tiny_model())
    trained = {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (16, 32, 0.0)), ({"r": 4}, (4, 8, 0.0)), ({"r": 4, "alpha": 16, "dropout": 0.1}, (4, 16, 0.1))],
)
def test_alpha_is_twice_the_rank_unless_set(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    lora = adapt(tiny_model(), **options).peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == expected
    assert lora.task_type == "CAUSAL_LM"


def test_any_field_of_the_config_can_be_set() -> None:
    lora = adapt(tiny_model(), target_modules=["q_proj"], options={"use_rslora": True}).peft_config["default"]
    assert lora.use_rslora
    assert lora.target_modules == {"q_proj"}


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_adapter_reloads_to_equal_logits(method: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), method=method)
    ids = IDS.clamp(max=319)
    before = logits(model, ids)
    step(model, ids)
    after = logits(model, ids)
    assert not torch.equal(before, after)
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), ids), after)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"vocab_size": 400}),
        ("gpt2", {}),
        ("phi", {"num_key_value_heads": 4}),
    ],
    ids=["untied", "tied", "reserved rows", "gpt2", "head with a bias"],
)
def test_trained_new_tokens_reload_to_equal_logits(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = base_with_new_tokens(tmp_path / "base", architecture, **options)
    rows = model.get_input_embeddings().weight.shape[0]
    model = adapt(model, [320, 321])
    step(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(rows)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))


def test_peft_alone_reloads_adapter_and_new_tokens(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321])
    step(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    extended_tokenizer().save_pretrained(tmp_path / "adapter")
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_lora_saves_only_the_rows_of_new_tokens(tied: bool, tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base", tie_word_embeddings=tied), [320, 321])
    model.save_pretrained(tmp_path / "adapter")
    rest = {key: shape for key, shape in saved(tmp_path / "adapter").items() if "lora_" not in key}
    assert set(rest.values()) == {torch.Size([2, 32])}
    assert len(rest) == (1 if tied else 2)


def test_only_the_rows_of_new_tokens_change(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321])
    before = [
        module.weight.detach().clone() for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    step(model, IDS)
    after = [module.weight.detach() for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    for old, new in zip(before, after, strict=True):
        changed = (old != new).any(dim=1).nonzero().flatten().tolist()
        assert changed == [320, 321]


def test_tied_rows_stay_tied_during_training(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base", tie_word_embeddings=True), [320, 321])
    step(model, IDS)
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


def test_merging_keeps_the_new_tokens(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321])
    step(model, IDS)
    expected = logits(model, IDS)
    torch.testing.assert_close(logits(copy.deepcopy(model).merge_and_unload(), IDS), expected, atol=1e-5, rtol=1e-5)


def test_other_methods_save_the_whole_embeddings_once(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321], method="ia3")
    step(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    assert sorted(shape for shape in saved(tmp_path / "adapter").values() if shape[0] == 322) == [(322, 32)] * 2
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(322)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))


def test_modules_to_save_are_not_trained_by_row_too(tmp_path: Path) -> None:
    model = base_with_new_tokens(tmp_path / "base")
    lora = adapt(model, [320, 321], options={"modules_to_save": ["lm_head"]}).peft_config["default"]
    assert lora.trainable_token_indices == {"model.embed_tokens": [320, 321]}
    assert lora.modules_to_save == ["lm_head"]


@pytest.mark.parametrize(("method", "tied"), [("ia3", True), ("prompt_tuning", False)])
def test_a_method_that_cannot_train_new_tokens_is_refused(method: str, tied: bool, tmp_path: Path) -> None:
    model = base_with_new_tokens(tmp_path / "base", tie_word_embeddings=tied)
    with pytest.raises(ConfigError, match=r"cannot train the embeddings of the 2 new tokens.*use method lora"):
        adapt(model, [320, 321], method=method)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("new", [[], [320, 321]], ids=["frozen embeddings", "new tokens"])
def test_gradients_are_the_same_with_checkpointing(reentrant: bool, new: list[int], tmp_path: Path) -> None:
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = adapt(base_with_new_tokens(tmp_path / "base"), new, options={"init_lora_weights": False})
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, expected in plain.items():
        assert expected.abs().sum() > 0, name
        torch.testing.assert_close(checkpointed[name], expected, atol=1e-6, rtol=1e-5)


def test_the_number_of_trained_parameters_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sftkit"):
        model = adapt(tiny_model(), r=2)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    assert caplog.messages == [
        f"peft: LoRA, {trained:,} trainable of {total:,} parameters ({100 * trained / total:.1f} %)"
    ]


def test_a_run_logs_trained_parameters_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True}
    with caplog.at_level(logging.INFO, logger="sftkit"):
        Pipeline(
            model=tiny_model(),
            tokenizer=tiny_tokenizer(),
            data=[{"text": f"a b {n}"} for n in range(4)],
            plugins=["peft"],
            train=train,
        ).run()
    assert sum(message.startswith("peft: LoRA") for message in caplog.messages) == 1


def test_adalora_reallocates_its_ranks_after_each_step() -> None:
    plugin = PEFT(method="adalora", options={"total_step": 10, "tinit": 1, "tfinal": 1, "target_r": 1, "init_r": 4})
    model = plugin.adapt_model(tiny_model(), tiny_config(), [])
    ids = IDS.clamp(max=319)
    (callback,) = plugin.trainer_callbacks()
    for number in range(1, 10):
        model.train()(input_ids=ids, labels=ids).loss.backward()
        state = type("State", (), {"global_step": number})
        callback.on_optimizer_step(None, state, None, model=model)
        model.zero_grad()
    assert model.peft_config["default"].rank_pattern


def test_other_methods_need_no_callback() -> None:
    assert PEFT().trainer_callbacks() == []


@pytest.mark.parametrize(("method", "fix"), [("lorra", "did you mean 'lora'?"), ("IA-3x", "did you mean 'ia3'?")])
def test_an_unknown_method_is_reported_with_the_nearest_name(method: str, fix: str) -> None:
    (problem,) = problems(method=method)
    assert problem.fix == fix


@pytest.mark.parametrize("method", ["LoRA", "prompt-tuning", "Prefix Tuning"])
def test_method_names_ignore_case_and_hyphens(method: str) -> None:
    assert problems(method=method) == []


def test_an_unknown_field_is_reported_with_the_nearest_name() -> None:
    (problem,) = problems(options={"use_rslorra": True})
    assert problem.fix == "did you mean 'use_rslora'?"
    assert problem.where == "plugin peft, option options.use_rslorra"


def test_fields_that_the_plugin_sets_are_refused_in_options() -> None:
    found = [problem.what for problem in problems(options={"r": 8, "task_type": "SEQ_CLS"})]
    assert found == ["set by the plugin itself"] * 2


def test_an_option_unknown_to_the_method_is_refused_if_set() -> None:
    assert problems(method="ia3") == []
    assert [problem.where for problem in problems(method="ia3", r=8, alpha=16)] == [
        "plugin peft, option r",
        "plugin peft, option alpha",
    ]


def test_options_that_peft_refuses_are_reported_before_loading() -> None:
    (problem,) = problems(target_modules="q_proj", options={"layers_to_transform": [0]})
    assert "peft refuses the options of LORA" in problem.what


def test_prompt_methods_are_refused_with_packing() -> None:
    assert problems(plugins={"packing": {}}) == []
    (problem,) = problems(plugins={"packing": {}}, method="prompt_tuning")
    assert "drop plugin packing" in problem.fix


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_prefix_tuning_is_refused_with_checkpointing(key: str) -> None:
    (problem,) = run_problems(PEFT(method="prefix_tuning"), train={key: True})
    assert problem.where == f"train.{key}"
    assert run_problems(PEFT(), train={key: True}) == []


def test_unmatched_target_modules_are_refused_with_a_list_of_layers() -> None:
    with pytest.raises(ConfigError, match=r"the linear layers are q_proj, k_proj, v_proj, o_proj, gate_proj"):
        adapt(tiny_model(), target_modules=["query"])


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"already has an adapter.*drop plugin peft"):
        adapt(adapt(tiny_model()))


def test_a_second_adapter_is_refused_before_loading(tmp_path: Path) -> None:
    adapt(tiny_model()).save_pretrained(tmp_path)
    (problem,) = run_problems(PEFT(), model={"name": str(tmp_path)})
    assert problem.fix == "drop plugin peft to train the adapter further"


def test_a_peft_config_is_used_without_being_changed() -> None:
    config = LoraConfig(r=4, lora_alpha=3, lora_dropout=0.1, bias="lora_only", task_type="CAUSAL_LM")
    before = copy.deepcopy(config)
    adapted = adapt(tiny_model(), config=config)
    expected = get_peft_model(tiny_model(), copy.deepcopy(config))
    assert config == before
    assert adapted.peft_config["default"].to_dict() == expected.peft_config["default"].to_dict()
    names = [
        [name for name, weight in model.named_parameters() if weight.requires_grad] for model in (adapted, expected)
    ]
    assert names[0] == names[1]


def test_peft_chooses_targets_for_a_config_without_them() -> None:
    assert adapt(tiny_model(), config=LoraConfig()).peft_config["default"].target_modules == {"q_proj", "v_proj"}


def test_a_config_without_task_gets_the_causal_one() -> None:
    assert adapt(tiny_model(), config=LoraConfig()).peft_config["default"].task_type == "CAUSAL_LM"


def test_options_hold_the_fields_of_a_config_that_differ_from_defaults() -> None:
    options = PEFT(config=LoraConfig(r=4, target_modules={"v_proj", "q_proj"}, use_rslora=True)).config
    assert options == {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    assert PEFT(config=options).config == options


def test_configs_of_other_methods_are_accepted() -> None:
    assert adapt(tiny_model(), config=IA3Config()).peft_config["default"].peft_type == "IA3"
    prompt = adapt(tiny_model(), config=PromptTuningConfig(num_virtual_tokens=3)).peft_config["default"]
    assert prompt.num_virtual_tokens == 3


def test_a_config_can_be_a_mapping_as_in_yaml() -> None:
    lora = adapt(tiny_model(), config={"peft_type": "lora", "r": 4, "target_modules": ["q_proj"]}).peft_config[
        "default"
    ]
    assert (lora.r, lora.target_modules) == (4, {"q_proj"})


def test_new_tokens_are_trained_with_a_config_too(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"])
    lora = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321], config=config).peft_config["default"]
    assert lora.trainable_token_indices == {"model.embed_tokens": [320, 321], "lm_head": [320, 321]}
    assert config.trainable_token_indices is None


def test_trainable_token_indices_are_refused_with_new_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainable_token_indices is set, but the 2 new tokens"):
        adapt(base_with_new_tokens(tmp_path / "base"), [320, 321], config=LoraConfig(trainable_token_indices=[5]))


def test_other_options_are_refused_together_with_a_config() -> None:
    found = problems(config=LoraConfig(), method="ia3", r=4, options={"use_rslora": True})
    assert [problem.where for problem in found] == [
        f"plugin peft, option {name}" for name in ("method", "r", "options")
    ]


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (LoraConfig(task_type="SEQ_CLS"), "config.task_type"),
        (LoraConfig(inference_mode=True), "config.inference_mode"),
        ({"peft_type": "LORA", "use_rslorra": True}, "config.use_rslorra"),
        ({"peft_type": "lorra"}, "config.peft_type"),
    ],
)
def test_config_fields_that_do_not_fit_are_refused(config: Any, where: str) -> None:
    assert [problem.where for problem in problems(config=config)] == [f"plugin peft, option {where}"]


def test_a_config_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="OwnConfig is not one of peft's own configs"):
        PEFT(config=type("OwnConfig", (LoraConfig,), {})())


def test_a_run_records_the_config_in_its_manifest(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    before = copy.deepcopy(config)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1, "use_cpu": True}
    options = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": [{"text": "a b c"}] * 4, "train": train}
    Pipeline(plugins=[PEFT(config=config)], **options).run()
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["plugins"]["peft"]["config"]
    assert recorded == {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    assert config == before
    Pipeline(plugins=[PEFT(config=config)], resume=True, **options).run()
