"""Packing on models that do more than plain attention: equal to single documents, or refused with the reason."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import transformers
from transformers import masking_utils

from sftkit import Pipeline
from sftkit.errors import ConfigError, RunError
from sftkit.testing import packed_rows, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.packing import Packing
from sftkit_plugins.packing.isolation import documents_known, isolated, trials_of
from sftkit_plugins.pad import PadCollator

SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "initializer_range": 0.3}
MODELS = {
    "gpt_oss": {**SLIDING, **EXPERTS, "num_local_experts": 4},
    "afmoe": {**SLIDING, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "num_dense_layers": 1},
    "gemma3_text": SLIDING,
    "bloom": {"initializer_range": 0.3},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "initializer_range": 0.3},
    "falcon": {"alibi": True, "head_dim": None, "initializer_range": 0.3},
    "llama4_text": {
        "num_local_experts": 2,
        "floor_scale": 32,
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 128,
        "intermediate_size_mlp": 64,
        "initializer_range": 0.3,
    },
    "phi3": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        **{f"linear_num_{name}_heads": 2 for name in ("key", "value")},
        **{f"linear_{name}_head_dim": 8 for name in ("key", "value")},
        "initializer_range": 0.3,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
LENGTHS = (20, 31, 25, 22, 9, 14, 28, 24)


def model_of(architecture, **options):
    options = {**MODELS.get(architecture, {}), **options}
    if architecture != "falcon":
        return tiny_model(architecture, **options)
    from transformers import FalconConfig, FalconForCausalLM  # its config has no head_dim to set

    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    del options["head_dim"]
    torch.manual_seed(0)
    return FalconForCausalLM(FalconConfig(**sizes, **options))


@functools.cache
def documents(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 320, length).tolist() for length in lengths]
    return tuple({"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in rows)


def rows_of(lengths=LENGTHS, max_length=64):
    return packed_rows(Packing(), [dict(row) for row in documents(lengths)], max_length=max_length)


def enter(model, rows, collator=None, size=2):
    config = tiny_config(train={"per_device_train_batch_size": size}, data={"max_length": 64})
    return Packing().training_context(model, config, rows, collator or PadCollator(2))


def gradients_of(model, batches):
    """The gradients of the mean loss of all trained tokens."""
    for ids, labels, positions in batches:
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").div(
            sum(LENGTHS)
        ).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["gpt_oss", "afmoe", "gemma3_text", "bloom", "mpt", "falcon"])
def test_an_sgd_step_on_packed_rows_equals_one_on_single_documents(architecture, attention):
    if attention == "sdpa" and architecture in ("gpt_oss", "bloom", "mpt"):
        pytest.skip("it has eager attention only")
    alone = model_of(architecture, attn_implementation=attention).eval()
    packed = copy.deepcopy(alone)
    batch = PadCollator(2)(list(rows_of()))
    single = [torch.tensor([row["input_ids"]]) for row in documents()]
    labels = [torch.tensor([row["labels"]]) for row in documents()]

    with enter(packed, rows_of()):
        found = gradients_of(packed, [(batch["input_ids"], batch["labels"], batch["position_ids"])])
    expected = gradients_of(alone, zip(single, labels, [None] * len(single), strict=True))

    assert found.keys() == expected.keys()
    for name, gradient in expected.items():  # the step of a rate of 1
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_masks_keep_the_windows_of_their_layers():
    model, seen = model_of("gpt_oss"), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
    with documents_known(model):
        model(input_ids=torch.arange(3, 27)[None], position_ids=torch.tensor([[*range(10), *range(14)]]))
    sliding, full = (mask[0, 0] == 0 for mask in seen)
    assert full.sum(1).tolist() == [*range(1, 11), *range(1, 15)]
    assert sliding.sum(1).tolist() == [min(8, count) for count in full.sum(1).tolist()]


@pytest.mark.parametrize(
    ("architecture", "limit", "short"),
    [("llama4_text", "floor_scale 32", (20, 9, 8)), ("phi3", "original_max_position_embeddings 16", (9, 14, 5, 12))],
)
def test_scaling_by_position_is_refused_only_where_the_run_reaches_it(architecture, limit, short):
    with pytest.raises(ConfigError, match=f"in rows longer than {limit} -> set data.max_length to at most"):
        enter(model_of(architecture), rows_of()).__enter__()
    length = 32 if architecture == "llama4_text" else 64
    with enter(model_of(architecture), rows_of(short, length)):
        pass


@pytest.mark.skipif(
    not hasattr(masking_utils, "remap_positions_for_packed_sequence"), reason="chunks leak, and are refused"
)
def test_attention_in_chunks_restarts_with_each_document():
    with enter(model_of("llama4_text", attn_temperature_tuning=False, attention_chunk_size=16), rows_of()):
        pass


def test_documents_longer_than_a_window_are_tried_even_if_the_first_rows_are_short():
    from transformers import MistralForCausalLM

    class Forgets(MistralForCausalLM):
        def forward(self, input_ids=None, position_ids=None, **more):  # its window is short for documents alone
            before, self.config.sliding_window = self.config.sliding_window, 16 if position_ids is None else 1000
            try:
                return super().forward(input_ids, position_ids=position_ids, **more)
            finally:
                self.config.sliding_window = before

    model = model_of("mistral", sliding_window=16)
    model.__class__ = Forgets
    short = (9, 14, 5, 12) * 40
    with enter(model, rows_of(short)):
        pass
    with pytest.raises(ConfigError, match="sliding_window 16"):
        enter(model, rows_of((*short, 30))).__enter__()


@pytest.mark.parametrize("architecture", ["qwen3_next", "lfm2"])
def test_layers_with_a_state_are_refused_without_kernels_for_documents(architecture):
    with pytest.raises(ConfigError, match=r"need kernels that take document borders.*install"):
        enter(model_of(architecture), rows_of()).__enter__()


def test_layers_with_a_state_are_isolated_by_kernels_that_take_document_borders(monkeypatch, caplog):
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    convolve, delta_rule = module.causal_conv1d_fn, module.torch_chunk_gated_delta_rule
    if convolve is None:
        pytest.skip(f"transformers {transformers.__version__} has no convolution of its own to wrap")

    def convolve_documents(x, *args, seq_idx=None, **options):
        if seq_idx is None:
            return convolve(x, *args, **options)
        lengths = torch.unique_consecutive(seq_idx[0], return_counts=True)[1].tolist()
        return torch.cat([convolve(part, *args, **options) for part in x.split(lengths, 2)], 2)

    def delta_rule_of_documents(*states, g, beta, cu_seqlens=None, seq_idx=None, **options):
        if cu_seqlens is None:
            return delta_rule(*states, g=g, beta=beta, **options)
        lengths = cu_seqlens.diff().tolist()
        parts = zip(*(state.split(lengths, 1) for state in (*states, g, beta)), strict=True)
        made = [delta_rule(*part[:3], g=part[3], beta=part[4], **options)[0] for part in parts]
        return torch.cat(made, 1), None

    monkeypatch.setattr(module, "causal_conv1d_fn", convolve_documents)
    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", delta_rule_of_documents)

    with caplog.at_level("INFO", "sftkit"), enter(model_of("qwen3_next"), rows_of(), size=1):
        pass

    assert "its layers get the document borders" in caplog.text


class WithoutPositions:
    def __call__(self, examples):
        batch = PadCollator(2)(examples)
        return {name: value for name, value in batch.items() if name != "position_ids"}


class Reversed:
    def __call__(self, examples):
        batch = PadCollator(2)(examples)
        return {name: value.flip(1) for name, value in batch.items()}


def test_a_collator_without_position_ids_is_refused_in_a_run(tmp_path):
    run = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=[{"text": f"The quick brown fox number {number}"} for number in range(12)],
        plugins=["packing", "no:checks"],
        collator=WithoutPositions(),
        train={"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True},
        config={"data": {"max_length": 64}},
    )
    with pytest.raises((ConfigError, RunError), match="use a collator that keeps position_ids"):
        run.run()


def test_a_collator_that_changes_the_tokens_is_refused():
    with pytest.raises(ConfigError, match="does not contain the tokens of its rows"):
        enter(tiny_model(), rows_of(), Reversed()).__enter__()


def test_a_model_may_change_its_embeddings_in_place():
    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0].mul_(2.0),))
    with enter(model, rows_of()):
        pass


def test_whatever_a_model_raises_for_packed_rows_is_the_reason_of_the_refusal():
    model = tiny_model()

    def fail(module, args, kwargs):
        if kwargs["position_ids"] is not None and kwargs["position_ids"].diff().min() < 0:
            raise IndexError("out of\nbounds")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(ConfigError, match=r"does not isolate packed documents .*IndexError: out of bounds -> drop"):
        enter(model, rows_of()).__enter__()


def test_a_model_that_adds_up_its_rounding_is_not_refused():
    try:
        model = tiny_model("hrm_text", initializer_range=0.3)  # it applies its layers many times
    except ValueError as error:
        pytest.skip(f"transformers {transformers.__version__}: {error}")
    with enter(model, rows_of()):
        pass


def test_a_leak_of_gradients_alone_is_found():
    class Leaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            return hidden.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + gradient.mean(1, keepdim=True)

    model = tiny_model()
    model.model.norm.register_forward_hook(lambda _, __, output: Leaks.apply(output))
    with pytest.raises(ConfigError, match="a document has a gradient by the tokens of others"):
        enter(model, rows_of()).__enter__()


def test_the_trials_stay_within_the_lengths_of_the_run():
    model = model_of("mistral", sliding_window=16)
    trials = trials_of(model, rows_of(), PadCollator(2), 2, 64)
    assert max(trial.batch["input_ids"].shape[1] for trial in trials) <= 64
    longest = {max(len(document.ids) for document in trial.documents) for trial in trials if "window" in trial.limit}
    assert max(longest) > 16
    with isolated(model, trials):
        pass
