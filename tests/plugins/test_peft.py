"""Adapters: what is trained, what is saved, and that a reload by plain transformers and peft gives the same model."""

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
from sftkit.testing import check_plugin, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.peft import PEFT

NEW = ["<|im_start|>", "<|im_end|>"]
IDS = torch.tensor([[0, 5, 6, 320, 7, 8, 321, 9]])
METHODS = ["lora", "ia3", "vera", "prompt_tuning"]


def adapt(model: Any, new_token_ids: list[int] | None = None, **options: Any) -> Any:
    return PEFT(**options).adapt_model(model, new_token_ids or [])


def problems(plugins: dict[str, Any] | None = None, **options: Any) -> list[Problem]:
    return list(PEFT(**options).check_run(config=tiny_config(plugins=plugins or {})))


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


def test_the_plugin_passes_the_checks_of_a_run() -> None:
    assert check_plugin(PEFT()).hook.adapt_model(model=tiny_model(), config=tiny_config(), new_token_ids=[])


def test_lora_goes_on_every_linear_layer_but_the_head() -> None:
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


def test_further_fields_of_the_config_are_options() -> None:
    lora = adapt(tiny_model(), target_modules=["q_proj"], options={"use_rslora": True}).peft_config["default"]
    assert lora.use_rslora
    assert lora.target_modules == {"q_proj"}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_saves_and_reloads_to_equal_logits(method: str, tmp_path: Path) -> None:
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
def test_new_tokens_are_trained_saved_and_reloaded_to_equal_logits(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = base_with_new_tokens(tmp_path / "base", architecture, **options)
    rows = model.get_input_embeddings().weight.shape[0]
    model = adapt(model, [320, 321])
    step(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(rows)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))


def test_one_line_of_peft_reloads_adapter_and_tokens(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321])
    step(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    extended_tokenizer().save_pretrained(tmp_path / "adapter")
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_lora_saves_the_rows_of_the_new_tokens_and_no_whole_embedding(tied: bool, tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base", tie_word_embeddings=tied), [320, 321])
    model.save_pretrained(tmp_path / "adapter")
    rest = {key: shape for key, shape in saved(tmp_path / "adapter").items() if "lora_" not in key}
    assert set(rest.values()) == {torch.Size([2, 32])}
    assert len(rest) == (1 if tied else 2)


def test_only_the_rows_of_the_new_tokens_change(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321])
    before = [
        module.weight.detach().clone() for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    step(model, IDS)
    after = [module.weight.detach() for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    for old, new in zip(before, after, strict=True):
        changed = (old != new).any(dim=1).nonzero().flatten().tolist()
        assert changed == [320, 321]


def test_tied_rows_stay_tied_while_they_are_trained(tmp_path: Path) -> None:
    model = adapt(base_with_new_tokens(tmp_path / "base", tie_word_embeddings=True), [320, 321])
    step(model, IDS)
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


def test_merging_gives_a_model_with_the_new_tokens_in_it(tmp_path: Path) -> None:
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


def test_modules_the_user_trains_whole_are_not_trained_by_row_as_well(tmp_path: Path) -> None:
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
def test_gradients_under_checkpointing_equal_those_without(reentrant: bool, new: list[int], tmp_path: Path) -> None:
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


def test_the_number_of_trained_parameters_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sftkit"):
        model = adapt(tiny_model(), r=2)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    assert caplog.messages == [
        f"peft: LoRA, {trained:,} trainable of {total:,} parameters ({100 * trained / total:.1f} %)"
    ]


def test_the_trained_ranks_of_adalora_are_moved_about_after_each_step() -> None:
    plugin = PEFT(method="adalora", options={"total_step": 10, "tinit": 1, "tfinal": 1, "target_r": 1, "init_r": 4})
    model = plugin.adapt_model(tiny_model(), [])
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


@pytest.mark.parametrize(("method", "mend"), [("lorra", "did you mean 'lora'?"), ("IA-3x", "did you mean 'ia3'?")])
def test_an_unknown_method_gets_the_nearest_name(method: str, fix: str) -> None:
    (problem,) = problems(method=method)
    assert problem.fix == fix


@pytest.mark.parametrize("method", ["LoRA", "prompt-tuning", "Prefix Tuning"])
def test_methods_are_known_in_any_spelling_of_case_and_hyphens(method: str) -> None:
    assert problems(method=method) == []


def test_an_unknown_field_gets_the_nearest_name() -> None:
    (problem,) = problems(options={"use_rslorra": True})
    assert problem.fix == "did you mean 'use_rslora'?"
    assert problem.where == "plugin peft, option options.use_rslorra"


def test_a_field_with_an_option_of_its_own_is_refused_among_the_further_ones() -> None:
    assert [problem.what for problem in problems(options={"r": 8, "task_type": "SEQ_CLS"})] == ["it is set already"] * 2


def test_an_option_the_method_does_not_have_is_refused_only_if_it_was_set() -> None:
    assert problems(method="ia3") == []
    assert [problem.where for problem in problems(method="ia3", r=8, alpha=16)] == [
        "plugin peft, option r",
        "plugin peft, option alpha",
    ]


def test_what_peft_refuses_is_a_problem_before_anything_is_loaded() -> None:
    (problem,) = problems(target_modules="q_proj", options={"layers_to_transform": [0]})
    assert "peft refuses the options of LORA" in problem.what


def test_a_prompt_in_front_of_packed_rows_is_a_problem() -> None:
    assert problems(plugins={"packing": {}}) == []
    (problem,) = problems(plugins={"packing": {}}, method="prompt_tuning")
    assert "drop plugin packing" in problem.fix


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_prefix_tuning_under_checkpointing_is_a_problem(key: str) -> None:
    config = tiny_config(train={key: True})
    (problem,) = PEFT(method="prefix_tuning").check_run(config=config)
    assert problem.where == f"train.{key}"
    assert list(PEFT().check_run(config=config)) == []


def test_target_modules_that_match_nothing_are_an_error_that_lists_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"the linear layers are q_proj, k_proj, v_proj, o_proj, gate_proj"):
        adapt(tiny_model(), target_modules=["query"])


def test_a_model_with_an_adapter_gets_no_second_one() -> None:
    with pytest.raises(ConfigError, match=r"has an adapter already.*drop plugin peft"):
        adapt(adapt(tiny_model()))


def test_a_config_of_peft_is_taken_as_it_is_and_not_changed() -> None:
    given = LoraConfig(r=4, lora_alpha=3, lora_dropout=0.1, bias="lora_only", task_type="CAUSAL_LM")
    before = copy.deepcopy(given)
    adapted = adapt(tiny_model(), config=given)
    expected = get_peft_model(tiny_model(), copy.deepcopy(given))
    assert given == before
    assert adapted.peft_config["default"].to_dict() == expected.peft_config["default"].to_dict()
    names = [
        [name for name, weight in model.named_parameters() if weight.requires_grad] for model in (adapted, expected)
    ]
    assert names[0] == names[1]


def test_a_config_without_target_modules_has_peft_choose_them_for_the_model_type() -> None:
    assert adapt(tiny_model(), config=LoraConfig()).peft_config["default"].target_modules == {"q_proj", "v_proj"}


def test_a_config_without_a_task_becomes_one_for_a_causal_model() -> None:
    assert adapt(tiny_model(), config=LoraConfig()).peft_config["default"].task_type == "CAUSAL_LM"


def test_the_manifest_tells_a_configs_fields_beside_their_defaults() -> None:
    options = PEFT(config=LoraConfig(r=4, target_modules={"v_proj", "q_proj"}, use_rslora=True)).config
    assert options == {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    assert PEFT(config=options).config == options


def test_a_config_of_another_method_is_taken_too() -> None:
    assert adapt(tiny_model(), config=IA3Config()).peft_config["default"].peft_type == "IA3"
    prompt = adapt(tiny_model(), config=PromptTuningConfig(num_virtual_tokens=3)).peft_config["default"]
    assert prompt.num_virtual_tokens == 3


def test_a_configs_fields_are_given_in_yaml_too() -> None:
    lora = adapt(tiny_model(), config={"peft_type": "lora", "r": 4, "target_modules": ["q_proj"]}).peft_config[
        "default"
    ]
    assert (lora.r, lora.target_modules) == (4, {"q_proj"})


def test_new_tokens_are_trained_with_a_config_too(tmp_path: Path) -> None:
    given = LoraConfig(target_modules=["q_proj"])
    lora = adapt(base_with_new_tokens(tmp_path / "base"), [320, 321], config=given).peft_config["default"]
    assert lora.trainable_token_indices == {"model.embed_tokens": [320, 321], "lm_head": [320, 321]}
    assert given.trainable_token_indices is None


def test_rows_of_ones_own_beside_new_tokens_are_refused_and_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainable_token_indices is set, and the 2 new tokens"):
        adapt(base_with_new_tokens(tmp_path / "base"), [320, 321], config=LoraConfig(trainable_token_indices=[5]))


def test_options_beside_a_config_are_refused() -> None:
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
def test_what_a_config_cannot_say_is_a_problem(config: Any, where: str) -> None:
    assert [problem.where for problem in problems(config=config)] == [f"plugin peft, option {where}"]


def test_a_config_of_a_class_of_ones_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="OwnConfig is none of peft's own configs"):
        PEFT(config=type("OwnConfig", (LoraConfig,), {})())


def test_a_run_takes_a_config_and_tells_it_in_its_manifest(tmp_path: Path) -> None:
    given = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    before = copy.deepcopy(given)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1, "use_cpu": True}
    options = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": [{"text": "a b c"}] * 4, "train": train}
    Pipeline(plugins=[PEFT(config=given)], **options).run()
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["plugins"]["peft"]["config"]
    assert told == {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    assert given == before
    Pipeline(plugins=[PEFT(config=given)], resume=True, **options).run()
