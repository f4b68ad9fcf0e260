"""The auxiliary loss of a mixture of experts is that of the model, whatever its coefficient is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sftkit.errors import ConfigError
from sftkit.testing import tiny_model
from sftkit.training.auxiliary import auxiliary_coefficient

SIZES = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "moe_k": 2}
SIZES |= {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
ATTENTION = {"layer_types": ["full_attention"] * 2}
DBRX = {
    # In transformers 5.12, the router's width is ffn_hidden_size.
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    **{"d_model": 32, "n_heads": 4, "n_layers": 2},
}
MAMBA = {"layer_types": ["attention"] * 2, "shared_intermediate_size": 16, "mamba_n_heads": 4, "mamba_d_head": 16}
#: Every model type of transformers with an auxiliary loss, and what its tiny model needs.
PLAIN = ("ernie4_5_moe", "flex_olmo", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoeshared", "laguna", "mellum")
PLAIN += ("minimax_m2", "minimax_m3_vl_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "jetmoe")
TYPES: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN},
    **dict.fromkeys(("minimax", "qwen3_next", "qwen3_5_moe_text"), ATTENTION),
    "doge": {"is_moe": True, "num_key_value_heads": 4},
    "dbrx": DBRX,
    "granitemoehybrid": {**MAMBA, "mamba_d_state": 8},
    "jamba": {"use_mamba_kernels": False, "attn_layer_period": 1, "attn_layer_offset": 0, "expert_layer_period": 1}
    | {"expert_layer_offset": 0},
}
#: Left out: image-text and speech models, encoders, and models whose own loss fails in this transformers.
OTHERS = {"ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "minimax_m3_vl", "qwen3_5_moe", "qwen3_omni_moe"}
OTHERS |= {"qwen3_vl_moe", "qwen4_exp", "nllb_moe", "switch_transformers", "flint", "deepseek_v4", "hy_v3"}


def model_of(architecture, **options):
    return tiny_model(architecture, **{**SIZES, "output_router_logits": True, **TYPES[architecture], **options})


def own_loss(model):
    ids = torch.arange(5, 25)[None]
    outputs = model(input_ids=ids, labels=ids)
    tokens = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], ids[0, 1:])
    return outputs.loss, tokens, outputs.aux_loss


def usable(architecture, **options):
    """The model; the test is skipped if this version of transformers lacks it, or fails with its own loss."""
    try:
        model = model_of(architecture, **options)
        auxiliary = own_loss(model)[2]
        assert torch.is_tensor(auxiliary), "its auxiliary loss is always 0"
    except (ValueError, AttributeError, TypeError, AssertionError) as error:
        pytest.skip(f"transformers {transformers.__version__}: {error}")
    return model


@pytest.mark.parametrize("architecture", sorted(TYPES))
def test_the_coefficient_is_that_of_the_models_own_loss(architecture):
    model = usable(architecture)
    coefficient = auxiliary_coefficient(model, model)
    own, tokens, auxiliary = own_loss(model.eval())
    assert coefficient > 0
    torch.testing.assert_close(own, tokens + coefficient * auxiliary, rtol=1e-6, atol=1e-6)


def test_every_model_type_with_an_auxiliary_loss_is_known():
    pattern = re.compile(r"loss \+= .*aux_loss|aux_loss = load_balancing|aux_loss=None,  # Not used")
    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    found = {file.parent.name for file in files if pattern.search(file.read_text(encoding="utf-8"))}
    assert found <= {name.removesuffix("_text") for name in TYPES} | OTHERS


def test_the_coefficient_is_found_in_half_precision_and_with_an_adapter():
    peft = pytest.importorskip("peft")
    model = usable("jetmoe", aux_loss_coef=1e-5).bfloat16()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["kv_proj"]))
    assert auxiliary_coefficient(model, adapted) == 1e-5


@pytest.mark.parametrize(("architecture", "options"), [("jetmoe", {"aux_loss_coef": 5.0}), ("dbrx", {})])
def test_a_run_trains_the_auxiliary_loss_and_logs_it(make_run, log_of, architecture, options):
    if architecture == "dbrx":
        options = {"ffn_config": {**DBRX["ffn_config"], "moe_loss_weight": 5.0}}
    batch = {"per_device_train_batch_size": 1, "max_steps": 1, "logging_steps": 1}
    train = {**batch, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    model = usable(architecture, **options)

    result = make_run(model=model, data=[{"text": "Paris is the capital of France."}], train=train).run()

    ids = torch.tensor([result.tokenizer("Paris is the capital of France.</s>")["input_ids"]])
    outputs = model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))
    outputs.loss.backward()
    for (name, before), after in zip(model.named_parameters(), result.model.parameters(), strict=True):
        expected = before if before.grad is None else before - before.grad
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5, msg=name)
    logged = next(entry for entry in log_of(result) if "loss" in entry)
    assert logged["router_loss"] == pytest.approx(outputs.aux_loss.item(), rel=1e-4)
    assert logged["loss"] == pytest.approx(outputs.loss.item(), rel=1e-4)


def test_an_auxiliary_loss_with_an_unknown_coefficient_is_refused(make_run):
    model = model_of("mixtral")

    class Hidden(type(model)):
        def forward(self, labels=None, **inputs):
            outputs = super().forward(**inputs)
            if labels is not None:
                outputs.loss = self.loss_function(outputs.logits, labels, self.vocab_size) + 0.5 * outputs.aux_loss
            return outputs

    model.__class__ = Hidden
    with pytest.raises(ConfigError, match="mixtral returns an aux_loss whose coefficient is not an attribute"):
        make_run(model=model).run()


def test_router_logits_that_a_model_cannot_add_to_its_loss_are_refused(make_run):
    model = model_of("mixtral")

    class Fails(type(model)):
        def forward(self, labels=None, **inputs):
            assert labels is None
            return super().forward(**inputs)

    model.__class__ = Fails
    with pytest.raises(ConfigError, match="mixtral computes no loss with output_router_logits"):
        make_run(model=model).run()


def test_a_loss_that_the_model_adds_unseen_is_refused(make_run):
    options = {"attn_layer_indices": [0, 1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    with pytest.raises(ConfigError, match=r"bamba adds a loss to its own .*z_loss_coefficient"):
        make_run(model=tiny_model("bamba", z_loss_coefficient=0.01, **options)).run()


def test_a_dense_model_is_not_tried():
    model = tiny_model()
    model.forward = None
    assert auxiliary_coefficient(model, model) is None
