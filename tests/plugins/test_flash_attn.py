"""Documents joined in a row give the same results as each alone, without padding, masks or extra packages."""

import inspect
import json
import logging
import pickle
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from sftkit import Pipeline
from sftkit.errors import ConfigError, RunError
from sftkit.run.rows import read_batch
from sftkit.testing import (
    CHATML,
    plugin_set,
    run_problems,
    tiny_config,
    tiny_conversations,
    tiny_model,
    tiny_tokenizer,
)
from sftkit.training.batches import micro_batches
from sftkit.training.trials import document_trials
from sftkit_plugins.flash_attn import FlashAttn
from sftkit_plugins.flash_attn.choose import Machine, half_precision, obstacles, resolve
from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
from sftkit_plugins.flash_attn.documents import Documents, from_positions
from sftkit_plugins.flash_attn.kernels import by_kernel, one_by_one
from sftkit_plugins.flash_attn.model import attending, prove_isolation
from sftkit_plugins.packing import Packing
from sftkit_plugins.pad import PadCollator

IGNORE = -100
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
MODELS = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "opt": OPT,
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "num_hidden_layers": 6},
}


def example(length, first_id=3, **columns):
    """An example with consecutive token ids, all of them trained."""
    ids = list(range(first_id, first_id + length))
    return {"input_ids": ids, "labels": list(ids), **columns}


EXAMPLES = [example(9), example(20, 40), example(5, 80), example(13, 100)]


def model_of(architecture, **options):
    return tiny_model(architecture, **{**MODELS.get(architecture, {}), **options}).train()


def forward(model, batch):
    """Logits of a collated batch, computed the way the trainer calls the model."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "row_lengths", "loss_weights")}
    return model(**inputs, use_cache=False).logits


def alone(rows=None, collator=None, **sections):
    """The arguments of training_context behind the model."""
    return tiny_config(**sections), rows, collator


def trials(model, rows=EXAMPLES, **options):
    """Batches without padding of single examples."""
    made = Dataset.from_list(rows)
    return document_trials(model.config, made, PaddingFreeCollator(), **{"batch_size": 4, "max_length": 64, **options})


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# The collator


def test_examples_are_joined_into_one_row_and_positions_restart():
    batch = PaddingFreeCollator()([example(3), example(2, 10)])

    assert batch["input_ids"].tolist() == [[3, 4, 5, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["row_lengths"].tolist() == [3, 2]
    assert "attention_mask" not in batch


def test_the_first_label_of_each_example_is_not_trained():
    batch = PaddingFreeCollator()([example(3), example(2, 10)])

    assert batch["labels"].tolist() == [[IGNORE, 4, 5, IGNORE, 11]]


def test_positions_of_a_packed_example_define_its_documents():
    batch = PaddingFreeCollator()([example(5, position_ids=[0, 1, 2, 0, 1]), example(2, position_ids=[0, 1])])

    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 7]
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert batch["row_lengths"].tolist() == [5, 2]


def test_an_example_is_its_own_document_even_if_its_positions_continue():
    batch = PaddingFreeCollator()([example(2, position_ids=[0, 1]), example(2, position_ids=[2, 3])])

    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 4]


def test_batches_have_the_dtypes_that_models_and_kernels_expect():
    batch = PaddingFreeCollator()([example(3, loss_weights=[0.5, 1.0, 2.0]), example(2, loss_weights=[1.0, 1.0])])

    types = {name: value.dtype for name, value in batch.items() if torch.is_tensor(value)}
    assert types.pop("cu_seq_lens_q") == types.pop("cu_seq_lens_k") == torch.int32
    assert types.pop("loss_weights") == torch.float32
    assert set(types.values()) == {torch.int64}
    assert batch["loss_weights"].tolist() == [[0.5, 1.0, 2.0, 1.0, 1.0]]


def test_examples_without_weights_in_a_weighted_batch_get_ones():
    batch = PaddingFreeCollator()([example(2), example(3, loss_weights=[0.5, 1.0, 2.0])])

    assert batch["loss_weights"].tolist() == [[1.0, 1.0, 0.5, 1.0, 2.0]]


def test_the_collator_can_be_pickled():
    collator = pickle.loads(pickle.dumps(FlashAttn().make_collator()))

    assert collator([example(3)])["input_ids"].shape == (1, 3)


def test_pad_makes_the_batches_without_padding_free():
    hook = plugin_set(FlashAttn(padding_free=False)).hook

    assert isinstance(hook.make_collator(tokenizer=tiny_tokenizer(), processor=None, config=tiny_config()), PadCollator)


def test_micro_batches_split_a_batch_between_examples():
    halves = list(micro_batches(PaddingFreeCollator()(EXAMPLES), 2))

    alone = PaddingFreeCollator()(EXAMPLES[2:])
    for name in ("input_ids", "labels", "position_ids", "cu_seq_lens_q", "row_lengths"):
        assert halves[1][name].tolist() == alone[name].tolist()


def test_preview_shows_each_example_of_a_batch_separately():
    rows = read_batch([example(3), example(2, 10)], PaddingFreeCollator(), tiny_tokenizer())

    assert [[id for piece in row.pieces for id in piece.ids] for row in rows] == [[3, 4, 5], [10, 11]]


# Parity


@pytest.mark.parametrize("implementation", ["varlen", "sdpa_flash"])
@pytest.mark.parametrize("architecture", MODELS)
def test_logits_and_gradients_equal_those_of_each_document_alone(architecture, implementation):
    model, alone = model_of(architecture), model_of(architecture)
    weights = torch.randn(47, 320, generator=torch.Generator().manual_seed(0))

    with attending(model, implementation):
        logits = forward(model, PaddingFreeCollator()(EXAMPLES))[0]
        (logits * weights).sum().backward()
    expected = torch.cat([alone(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in EXAMPLES])
    (expected * weights).sum().backward()

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model), gradients(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", MODELS)
def test_logits_equal_those_of_a_padded_batch_with_eager_attention(architecture):
    model, eager = model_of(architecture), model_of(architecture, attn_implementation="eager")
    padded = PadCollator(2)(EXAMPLES)

    with attending(model, "varlen"):
        logits = forward(model, PaddingFreeCollator()(EXAMPLES))[0]

    expected = forward(eager, padded)[padded["attention_mask"].bool()]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_packed_rows_of_a_padded_batch_equal_their_documents_alone(architecture):
    model, ids = model_of(architecture), torch.arange(3, 67).view(2, 32)
    places = torch.tensor([[*range(8), *range(24)], [*range(16), *range(15), 0]])

    with attending(model, "varlen"):
        logits = model(input_ids=ids, position_ids=places, use_cache=False).logits

    for row, low, high in [(0, 0, 8), (0, 8, 32), (1, 0, 16), (1, 16, 31), (1, 31, 32)]:
        alone = model(input_ids=ids[row : row + 1, low:high]).logits[0]
        torch.testing.assert_close(logits[row, low:high], alone, rtol=1e-5, atol=1e-5)


def test_layers_receive_the_documents_and_no_mask_is_built():
    model, seen = model_of("gemma3_text", num_hidden_layers=6), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)

    with attending(model, "varlen"):
        forward(model, PaddingFreeCollator()(EXAMPLES))

    masks = [kwargs["attention_mask"] for kwargs in seen]
    assert all(isinstance(mask, Documents) for mask in masks)
    assert [mask.window for mask in masks] == [6] * 5 + [None]
    assert len({id(mask) for mask in masks}) == 2  # found once per forward for each kind of layer


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_with_the_same_documents(reentrant):
    model, alone, batch = model_of("llama"), model_of("llama"), PaddingFreeCollator()(EXAMPLES)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()

    with attending(model, "varlen"):
        forward(model, batch).square().sum().backward()
    with attending(alone, "varlen"):
        forward(alone, batch).square().sum().backward()

    torch.testing.assert_close(gradients(model), gradients(alone))


@pytest.mark.parametrize("implementation", ["varlen", "sdpa_flash"])
def test_padded_batches_and_cached_generation_match_sdpa(implementation):
    model = model_of("llama").eval()
    padded, prompt = PadCollator(2)(EXAMPLES), torch.arange(3, 23).view(2, 10)
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    logits = forward(model, padded)
    made = model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=6, do_sample=False)

    with attending(model, implementation):
        assert torch.equal(forward(model, padded), logits)
        again = model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=6, do_sample=False)

    assert torch.equal(again, made)


def test_sdpa_flash_treats_rows_without_padding_as_one_document_each():
    model, ids = model_of("llama"), torch.arange(3, 67).view(2, 32)
    expected = model(input_ids=ids, use_cache=False).logits

    with attending(model, "sdpa_flash"):
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("train", "dtype"), [({}, torch.float32), ({"bf16": True}, torch.bfloat16)])
def test_isolation_is_tested_in_the_training_precision(train, dtype):
    model, seen = model_of("llama"), set()
    model.lm_head.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    known = alone(train={"use_cpu": True, **train})

    with FlashAttn().training_context(model, *known), Packing().training_context(model, *known):
        pass

    assert seen == {dtype}


def test_sdpa_flash_refuses_to_train_on_a_padded_batch():
    model = model_of("llama")

    with attending(model, "sdpa_flash"), pytest.raises(RunError, match="padding mask"):
        forward(model, PadCollator(2)(EXAMPLES))


def test_documents_of_a_failed_forward_do_not_reach_the_next():
    model, ids = model_of("llama"), torch.arange(3, 13)[None]
    expected = model(input_ids=ids, use_cache=False).logits

    with attending(model, "varlen"):
        with pytest.raises(IndexError):
            forward(model, PaddingFreeCollator()([example(5, 10_000), example(5, 10_000)]))
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)


# torch's kernel, which runs only on GPUs


def heads(rows, columns, query_heads=4, key_heads=2, width=8, value_width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = ((query_heads, width), (key_heads, width), (key_heads, value_width))
    return [torch.randn(rows, count, columns, size, generator=generator).bfloat16() for count, size in shapes]


def varlen_by_definition(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=None):
    """varlen_attn as torch documents it: ``[T, H, D]``; (W, 0) is a window of W tokens before a token, plus itself."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.dtype in (torch.bfloat16, torch.float16)
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert window_size[1] == 0
    assert enable_gqa in (None, query.shape[1] != key.shape[1])
    parts = []
    for low, high in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        back = torch.arange(high - low)[:, None] - torch.arange(high - low)
        seen = (back >= 0) & ((back <= window_size[0]) if window_size[0] >= 0 else True)
        q, k, v = (part[low:high].transpose(0, 1).float() for part in (query, key, value))
        k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
        scores = (q @ k.transpose(1, 2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
        parts.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts).to(query.dtype)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("width", "value_width"), [(8, 8), (8, 6), (10, 10)])
def test_kernel_arguments_describe_the_one_by_one_computation(monkeypatch, window, scaling, width, value_width):
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has no varlen_attn before 2.10")
    signature = inspect.signature(varlen.varlen_attn)

    def bound(*args, **kwargs):
        signature.bind(*args, **kwargs)
        assert ("enable_gqa" in kwargs) == ("enable_gqa" in signature.parameters)  # torch 2.11 groups heads unasked
        return varlen_by_definition(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", bound)
    query, key, value = heads(2, 16, width=width, value_width=value_width)
    places = torch.tensor([[*range(7), *range(9)], [*range(16)]])
    documents = from_positions(places, apart=True).with_window(window)

    made = by_kernel(query, key, value, documents, scaling)

    expected = one_by_one(query, key, value, documents, scaling)
    torch.testing.assert_close(made, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("flag", [True, False])
def test_the_grouped_heads_flag_is_passed_if_torch_has_it(monkeypatch, flag):
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has no varlen_attn before 2.10")
    passed = []

    def seen(query, *args, **kwargs):
        passed.append("enable_gqa" in kwargs)
        return query

    monkeypatch.setattr(varlen, "varlen_attn", seen)
    monkeypatch.setattr("sftkit_plugins.flash_attn.kernels.HAS_GQA_FLAG", flag)

    by_kernel(*heads(1, 16), from_positions(torch.arange(8).repeat(2)[None], apart=False), None)

    assert passed == [flag]


def test_the_kernel_gets_half_precision_after_float32_norms(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has no varlen_attn before 2.10")
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_definition)
    query, key, value = heads(1, 16)
    documents = from_positions(torch.arange(8).repeat(2)[None], apart=True)

    assert by_kernel(query.float(), key.float(), value, documents, None).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert by_kernel(query.float(), key.float(), value.float(), documents, None).dtype == torch.bfloat16
    with pytest.raises(RunError, match="half precision"):
        by_kernel(query.float(), key.float(), value.float(), documents, None)


# Checks and refusals


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model and its tokenizer, and returns the directory."""

    def save(architecture="llama", **options):
        model_of(architecture, **options).save_pretrained(tmp_path / "model")
        tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


CPU = Machine("cpu", varlen=True, torch="2.13.0")
GPU = Machine("cuda", (9, 0), frozenset({"flash_attn", "flash_attn_interface"}), "2.13.0", varlen=True)
HALF = {"model": {"dtype": "bfloat16"}}


def in_the_way(name, machine, architecture=None, **sections):
    config = tiny_config(**sections)
    return list(obstacles(name, config, machine, architecture, half_precision(config, None)))


def chosen(machine, config=HALF, architecture="llama", **options):
    model = tiny_model(architecture, **{**MODELS.get(architecture, {}), **options}).config
    config = tiny_config(**config)
    return resolve("auto", config, machine, model, half_precision(config, None))


@pytest.mark.parametrize(
    ("machine", "config", "expected"),
    [
        (CPU, {}, "varlen"),
        (GPU, HALF, "flash_attention_3"),
        (Machine("cuda", (8, 0), GPU.packages, "2.13.0", varlen=True), HALF, "flash_attention_2"),
        (Machine("cuda", (8, 0), frozenset(), "2.13.0", varlen=True), HALF, "varlen"),
        (Machine("cuda", (8, 0), frozenset(), "2.9.0"), HALF, "flex"),
        (GPU, {}, "flex"),
        (GPU, {"train": {"bf16": True}}, "flash_attention_3"),
        (Machine("cuda", (7, 5), frozenset(), "2.13.0", varlen=True), HALF, "flex"),
    ],
)
def test_auto_selects_the_best_implementation_for_the_machine_and_precision(machine, config, expected):
    assert chosen(machine, config) == (expected, [])


def test_auto_depends_on_the_model():
    assert (
        chosen(GPU, architecture="gpt2", attn_pdrop=0.1)[0] == "flash_attention_2"
    )  # flash_attention_3 has no dropout
    assert chosen(GPU, architecture="gpt_oss")[0] == "flex"


def test_auto_reports_the_problem_if_nothing_works():
    name, problems = chosen(CPU, architecture="gemma2")

    assert name == "varlen"
    assert [problem.what for problem in problems] == [
        "varlen does not support soft caps on the attention scores (model type gemma2)"
    ]


def test_the_choice_of_auto_is_logged(caplog):
    caplog.set_level(logging.INFO, "sftkit")

    with FlashAttn().training_context(model_of("llama"), *alone()):
        pass

    assert caplog.messages == ["flash_attn: varlen, the best that works here; batches without padding"]


@pytest.mark.parametrize(
    ("architecture", "options", "match"),
    [
        ("gemma2", {}, "soft caps"),
        ("gpt_oss", {}, "attention sinks"),
        ("gpt2", {"attn_pdrop": 0.1}, "attn_pdrop 0.1"),
        ("llama", {"attention_dropout": 0.2}, "attention_dropout 0.2"),
        ("llama4_text", {"layer_types": ["chunked_attention", "full_attention"]}, "attention in chunks"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
    ],
)
def test_varlen_refuses_unsupported_features_by_name(architecture, options, match):
    from transformers import AutoConfig

    sizes = {"num_hidden_layers": 2, **options}
    model = AutoConfig.for_model(architecture, **sizes)

    for machine in (CPU, GPU):
        problems = in_the_way("varlen", machine, model, **HALF)
        assert [problem for problem in problems if match in problem.what], problems


@pytest.mark.parametrize("name", ["varlen", "sdpa_flash", "flash_attention_2"])
def test_heads_too_wide_for_the_kernels_are_refused_on_a_gpu(name):
    model = tiny_model("llama", head_dim=512).config

    (problem,) = in_the_way(name, GPU, model, **HALF)

    assert "heads of width 512" in problem.what
    assert not in_the_way("flex", GPU, model, **HALF)
    assert not in_the_way("varlen", CPU, model)


def test_dropout_is_refused_before_loading_and_a_model_option_fixes_it(saved):
    name = saved("gpt2", attn_pdrop=0.1)

    (problem,) = run_problems(FlashAttn(), model={"name": name})

    assert problem.fix == "set model.options.attn_pdrop: 0.0"
    assert not run_problems(FlashAttn(), model={"name": name, "options": {"attn_pdrop": 0.0}})


def test_layers_refuse_unsupported_features_that_no_check_caught():
    model = model_of("gemma2")

    with attending(model, "varlen"), pytest.raises(RunError, match="soft caps"):
        forward(model, PaddingFreeCollator()(EXAMPLES))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3"])
def test_a_missing_gpu_and_package_are_reported_before_loading(saved, implementation):
    plugin = FlashAttn(implementation=implementation)

    problems = Pipeline(model=saved(), data=["none.jsonl"], plugins=[plugin]).check()

    gpu, package = [problem for problem in problems if implementation in problem.what]
    assert "needs a GPU" in gpu.what
    assert "install" in package.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_flex_is_refused_without_a_gpu():
    (problem,) = run_problems(FlashAttn(implementation="flex"))

    assert "no backward pass on the device cpu" in problem.what


@pytest.mark.parametrize("name", ["varlen", "sdpa_flash", "flash_attention_2", "flash_attention_3"])
def test_kernels_on_a_gpu_need_half_precision(name):
    assert not in_the_way(name, GPU, **HALF)
    assert not in_the_way(name, GPU, train={"fp16": True})

    (problem,) = in_the_way(name, GPU)
    assert "half precision" in problem.what


@pytest.mark.parametrize("sections", [{"model": {"dtype": "auto"}}, {"model": {"name": "loaded LlamaForCausalLM"}}])
def test_loaded_weights_decide_the_precision_if_the_configuration_does_not(sections):
    config, model = tiny_config(**sections), tiny_model("llama")

    assert half_precision(config, None) is None
    assert half_precision(config, model) is False
    assert half_precision(config, model.bfloat16()) is True


def test_a_torch_that_is_too_old_for_varlen_is_reported():
    (problem,) = in_the_way("varlen", Machine("cuda", (9, 0), frozenset(), "2.9.1"), **HALF)

    assert "torch 2.9.1 is installed" in problem.what
    assert "torch 2.11" in problem.fix
    assert not in_the_way("varlen", Machine("cpu", torch="2.9.1"))


def test_sdpa_flash_needs_packed_rows():
    for plugin in (FlashAttn(implementation="sdpa_flash"), FlashAttn(implementation="sdpa_flash", padding_free=False)):
        (problem,) = run_problems(plugin)
        assert "add the plugin packing" in problem.fix
        assert not run_problems(plugin, plugins={"packing": {}})


def test_sdpa_flash_is_refused_if_held_out_rows_would_be_padded():
    padded, data = FlashAttn(implementation="sdpa_flash", padding_free=False), {"eval": "held-out.jsonl"}

    (problem,) = run_problems(padded, plugins={"packing": {"eval": False}}, data=data)
    assert "data.eval would be padded" in problem.what
    assert not run_problems(padded, plugins={"packing": {"eval": True}}, data=data)
    assert not run_problems(FlashAttn(implementation="sdpa_flash"), plugins={"packing": {"eval": False}}, data=data)


def test_sdpa_flash_is_refused_with_a_window_shorter_than_a_row():
    model = model_of("mistral").config

    (problem,) = in_the_way("sdpa_flash", CPU, model, data={"max_length": 64})
    assert "sliding window of 6 tokens" in problem.what
    assert not in_the_way("sdpa_flash", CPU, model, data={"max_length": 6})


def test_attn_implementation_in_the_model_options_is_refused():
    (problem,) = run_problems(FlashAttn(), model={"options": {"attn_implementation": "eager"}})

    assert problem.where == "model.options.attn_implementation"


def test_prompt_methods_are_refused_in_padding_free_batches():
    sections = {"plugins": {"peft": {"method": "prompt_tuning"}}}

    assert "puts its prompt before each row" in run_problems(FlashAttn(), **sections)[0].what
    assert not run_problems(FlashAttn(padding_free=False), **sections)


@pytest.mark.parametrize(
    ("architecture", "match"),
    [("bloom", "does not support choosing an attention"), ("mamba", "layers of type")],
)
def test_models_without_a_choice_of_attention_are_refused(architecture, match):
    with pytest.raises(ConfigError, match=match), FlashAttn().training_context(model_of(architecture), *alone()):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_isolation_test_detects_documents_that_attend_to_each_other(dtype):
    model = model_of("opt").to(dtype)

    with pytest.raises(ConfigError, match="model type opt does not keep the documents of a batch apart"):
        prove_isolation(model, "sdpa", trials(model))
    with attending(model, "varlen"):
        prove_isolation(model, "varlen", trials(model))


def test_the_isolation_test_reaches_windows_and_uses_the_batches_of_the_run():
    model = model_of("mistral", sliding_window=16)
    for trial in trials(model):
        assert len(trial.batch["input_ids"]) == 1
        assert "cu_seq_lens_q" in trial.batch
    assert "sliding_window 16" in {trial.limit for trial in trials(model)}
    with attending(model, "varlen"):
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(_without_window, with_kwargs=True)
        with pytest.raises(ConfigError, match="in rows longer than sliding_window 16"):
            prove_isolation(model, "varlen", trials(model))


def _without_window(module, args, kwargs):
    mask = kwargs["attention_mask"]
    whole = replace(mask, window=None, band=None) if isinstance(mask, Documents) else mask
    return args, {**kwargs, "attention_mask": whole}


# The model after training


def traces(model):
    from transformers import AttentionInterface, AttentionMaskInterface

    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    hooks = [len(getattr(module, kind)) for module in model.modules() for kind in kinds]
    return hooks, model.config._attn_implementation, set(AttentionInterface()), set(AttentionMaskInterface())


@pytest.mark.parametrize("implementation", ["varlen", "sdpa_flash"])
def test_hooks_and_names_are_removed_on_exit(implementation):
    model = model_of("llama", attn_implementation="eager")
    before = traces(model)

    with FlashAttn(implementation=implementation).training_context(model, *alone()):
        assert traces(model) != before

    assert traces(model) == before


def test_hooks_and_names_are_removed_after_an_exception():
    model = model_of("llama")
    before = traces(model)

    with pytest.raises(RuntimeError, match="training"), FlashAttn().training_context(model, *alone()):
        raise RuntimeError("training failed")

    assert traces(model) == before


def test_a_nested_run_keeps_the_implementation_of_the_outer_one():
    outer, inner = model_of("llama"), model_of("llama")

    with attending(outer, "varlen"):
        with attending(inner, "varlen"):
            pass
        prove_isolation(outer, "varlen", trials(outer))


# Whole runs


def run(tmp_path, *plugins, model=None, name="run", **train):
    settings = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "logging_steps": 1}
    return Pipeline(
        model=model or tiny_model("llama"),
        tokenizer=tiny_tokenizer(chat_template=CHATML),
        data=tiny_conversations(24),
        eval=tiny_conversations(7, first=100),
        plugins=[*plugins, "no:checks"],  # the held-out rows are training rows
        train={**settings, "output_dir": str(tmp_path / name), **train},
    ).run()


def assert_same_run(one, other):
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    for (name, a), b in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "plugin",
    [
        FlashAttn(),
        *(
            pytest.param(item, marks=pytest.mark.slow)
            for item in (FlashAttn(padding_free=False), FlashAttn(implementation="sdpa_flash"))
        ),
    ],
)
def test_a_packed_run_equals_one_without_flash_attn(tmp_path, plugin):
    assert_same_run(run(tmp_path, "packing", plugin), run(tmp_path, "packing", "no:flash_attn", name="other"))


def test_a_run_without_padding_equals_one_with_padded_batches(tmp_path):
    train = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2}

    assert_same_run(run(tmp_path, "flash_attn", **train), run(tmp_path, "no:flash_attn", name="other", **train))


def test_a_mixed_precision_run_is_close_to_one_with_padded_batches(tmp_path):
    train = {"bf16": True, "use_cpu": True}
    one, other = run(tmp_path, "flash_attn", **train), run(tmp_path, "no:flash_attn", name="other", **train)

    assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=1e-2)


def test_a_run_with_adapters_and_checkpointing_equals_one_with_padded_batches(tmp_path):
    plugins, train = ["peft:r=2"], {"gradient_checkpointing": True}

    assert_same_run(
        run(tmp_path, "flash_attn", *plugins, **train), run(tmp_path, "no:flash_attn", *plugins, name="other", **train)
    )


def test_final_evaluation_keeps_documents_apart_in_a_leaking_model(tmp_path):
    one = run(tmp_path, "flash_attn", model=model_of("opt"))

    assert_same_run(one, run(tmp_path, "no:flash_attn", model=model_of("opt"), name="other"))


@pytest.mark.parametrize("plugins", [["packing", "flash_attn"], ["flash_attn", "packing"]])
def test_the_isolation_test_of_packing_uses_the_implementation_in_any_order(tmp_path, plugins):
    run(tmp_path, *plugins, model=model_of("opt"))  # with sdpa, the documents of this model attend to each other


def test_the_isolation_test_of_packing_passes_with_several_rows_per_batch():
    model = model_of("opt")

    with attending(model, "varlen"), Packing().training_context(model, *alone()):
        pass


def test_samples_equal_those_of_a_run_without_flash_attn(tmp_path):
    run(tmp_path, "flash_attn", "samples")
    run(tmp_path, "samples", "no:flash_attn", name="other")

    lines = [(tmp_path / name / "samples.jsonl").read_text() for name in ("run", "other")]
    assert lines[0] == lines[1]


def test_neither_the_input_model_nor_the_saved_one_keeps_the_implementation(tmp_path):
    model = tiny_model("llama")

    result = run(tmp_path, "flash_attn", model=model)

    assert model.config._attn_implementation == result.model.config._attn_implementation == "sdpa"
    assert "sftkit" not in json.dumps(json.loads((result.directory / "config.json").read_text()))
