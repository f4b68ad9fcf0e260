"""Which layers an adapter trains: names that match, experts, and layers that share their weights."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sftkit import Pipeline
from sftkit.errors import ConfigError
from sftkit.models.embeddings import grow_embeddings
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.peft import PEFT

IDS = torch.tensor([[0, 5, 6, 318, 7, 8, 319, 9]])
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.3}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def adapt(model: Any, new_token_ids: list[int] | None = None, **options: Any) -> Any:
    return PEFT(**options).adapt_model(model, tiny_config(), new_token_ids or [])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def steps(model: Any) -> None:
    for _ in range(3):
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
                    parameter.grad = None


def assert_kept(model: Any, base: Path, directory: Path) -> None:
    """The logits after training are those after reloading, after merging, and of the saved merged model."""
    expected = logits(model)
    model.save_pretrained(directory / "adapter")
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory / "adapter")
    torch.testing.assert_close(logits(reloaded), expected, rtol=1e-5, atol=1e-5)
    merged = copy.deepcopy(reloaded).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(directory / "merged")
    saved = AutoModelForCausalLM.from_pretrained(directory / "merged")
    torch.testing.assert_close(logits(saved), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["q_prj", "v_proj"]}, r"target_modules: no layer .* 'q_prj' -> did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "wholly_other"]}, "the linear layers are q_proj, k_proj"),
        ({"target_modules": "q_proj"}, r"matches no whole name -> write it as a list: \[q_proj\]"),
        ({"options": {"modules_to_save": ["lm_haed"]}}, "modules_to_save: .* -> did you mean 'lm_head'"),
        ({"config": LoraConfig(target_modules=["v_proj", "k_prj"])}, "did you mean 'k_proj'"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        adapt(tiny_model(), **options)


def test_a_misspelt_parameter_of_experts_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gate_up_prj' -> did you mean 'experts.gate_up_proj'"):
        adapt(tiny_model("qwen3_moe", **EXPERTS), target_parameters=["experts.gate_up_prj"])


def test_dropout_on_experts_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ConfigError, match=r"lora_dropout != 0.* -> set dropout=0, or name linear layers alone"):
        PEFT(dropout=0.1, options={"target_parameters": BOTH}).adapt_model(
            tiny_model("qwen3_moe", **EXPERTS), tiny_config(), []
        )


def test_peft_does_not_warn_of_ranks_that_it_has_set_itself(recwarn: pytest.WarningsRecorder) -> None:
    adapted = PEFT(r=2).adapt_model(tiny_model("mixtral", num_local_experts=4), tiny_config(), [])
    assert not [warning for warning in recwarn if "_pattern keys" in str(warning.message)]
    pattern = adapted.peft_config["default"].rank_pattern
    experts = adapted.base_model.model.model.layers[0].mlp.experts
    assert pattern == {r".*\.gate_up_proj": 4}, "both halves of the fused weight have the rank"
    assert sorted({layer.r["default"] for layer in experts.modules() if hasattr(layer, "lora_A")}) == [2, 4]


def test_peft_warns_of_ranks_that_match_nothing() -> None:
    with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match"):
        PEFT(options={"rank_pattern": {"nothing": 4}}).adapt_model(tiny_model(), tiny_config(), [])


def test_experts_are_adapted_saved_and_merged(tmp_path: Path) -> None:
    tiny_model("qwen3_moe", **EXPERTS).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = adapt(base, target_modules=["q_proj"], target_parameters=BOTH)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any("experts" in name for name in names)
    before = logits(model)
    steps(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    assert_kept(model, tmp_path / "base", tmp_path)


def test_experts_that_all_linear_leaves_frozen_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sftkit"):
        adapt(tiny_model("gpt_oss", **GPT_OSS))
    assert "leaves the experts frozen; to adapt them, set target_parameters: [experts.gate_up_proj" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="sftkit"):
        adapt(tiny_model("gpt_oss", **GPT_OSS), target_parameters=BOTH)
        adapt(tiny_model("qwen3_moe", **EXPERTS), target_modules=["q_proj"])
        adapt(tiny_model())
    assert not caplog.messages


def test_all_linear_leaves_out_layers_that_only_derive_from_linear_ones(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("phimoe", num_local_experts=4, num_experts_per_tok=2)  # its router returns a tuple
    with caplog.at_level(logging.WARNING, "sftkit"):
        adapted = adapt(model)
    adapted(input_ids=IDS % 300).logits.sum().backward()
    assert not [name for name, _ in adapted.named_parameters() if "router" in name and "lora" in name]
    assert "router" not in caplog.text


def test_experts_of_an_image_text_model_that_stay_frozen_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AriaConfig, AriaForConditionalGeneration, AriaTextConfig, Idefics3VisionConfig

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    text |= {"moe_num_experts": 4, "moe_topk": 2, "vocab_size": 320, "pad_token_id": 0}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    parts = {"text_config": AriaTextConfig(**text), "vision_config": Idefics3VisionConfig(**vision)}
    model = AriaForConditionalGeneration(AriaConfig(**parts, projector_patch_to_query_dict={4: 2}))
    with caplog.at_level(logging.WARNING, "sftkit"):
        adapt(model)
    assert "all-linear leaves the experts frozen" in caplog.text
    assert "linear layers frozen" not in caplog.text  # those of the vision tower are not asked for


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": r".*(q_proj|lm_head)"},
        {"target_modules": ["q_proj"], "options": {"trainable_token_indices": {"lm_head": [318, 319]}}},
        {
            "target_modules": ["q_proj"],
            "options": {"trainable_token_indices": [318, 319], "modules_to_save": ["lm_head"]},
        },
    ],
    ids=["head", "embeddings", "regex", "rows of the head", "rows and head"],
)
def test_adapters_on_shared_weights_are_refused_and_others_kept(
    tied: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model(tie_word_embeddings=tied, initializer_range=0.3).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if tied:
        with pytest.raises(ConfigError, match="share"):
            adapt(base, **options)
        return
    model = adapt(base, **options)
    steps(model)
    assert_kept(model, tmp_path / "base", tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [318, 319]},
    ],
    ids=["embeddings", "head", "both", "rows"],
)
def test_shared_weights_that_are_trained_in_full_or_by_row_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=True, initializer_range=0.3).save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), target_modules=["q_proj"], options=options)
    steps(model)
    assert_kept(model, tmp_path / "base", tmp_path)


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_new_tokens_beside_a_saved_copy_of_shared_weights_are_refused(layer: str) -> None:
    model = tiny_model(tie_word_embeddings=True)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    grow_embeddings(model, tokenizer, [320, 321])
    with pytest.raises(ConfigError, match=f"remove {layer} from modules_to_save: rows of new tokens are trained"):
        adapt(model, [320, 321], options={"modules_to_save": [layer]})


def pipeline(model: Any, directory: Path, *plugins: Any) -> Pipeline:
    train = {"output_dir": str(directory / "run"), "max_steps": 1, "use_cpu": True}
    return Pipeline(model=model, tokenizer=tiny_tokenizer(), data="none.jsonl", plugins=list(plugins), train=train)


def test_a_frozen_model_is_refused_before_data_is_read(tmp_path: Path) -> None:
    frozen = tiny_model().requires_grad_(False)
    run = pipeline(frozen, tmp_path)
    assert ["nothing of the model can be trained" in problem.what for problem in run.check()].count(True) == 1
    with pytest.raises(ConfigError, match="every weight has requires_grad False"):
        run.run()
    assert "nothing of the model" not in str(pipeline(frozen, tmp_path, "peft").check())


def test_an_adapter_for_inference_is_refused_before_data_is_read(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], inference_mode=True)
    with pytest.raises(ConfigError, match="load the adapter with is_trainable=True"):
        pipeline(get_peft_model(tiny_model(), config).requires_grad_(False), tmp_path).run()


def test_an_adapted_model_with_the_plugin_is_refused_before_data_is_read(tmp_path: Path) -> None:
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="already has an adapter, and plugin peft would add a second"):
        pipeline(adapted, tmp_path, "peft").run()
