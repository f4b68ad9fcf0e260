"""Layers are compiled once for all lengths, give the same results, and are plain afterwards."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from sftkit import Pipeline
from sftkit.errors import ConfigError
from sftkit.testing import (
    CHATML,
    run_problems,
    tiny_config,
    tiny_conversations,
    tiny_model,
    tiny_tokenizer,
)
from sftkit_plugins.compile import Compile, decoder_around, decoder_layers

LENGTHS = (17, 32, 5, 40, 8, 23, 50, 64, 11, 31)  # among them the width of a head and of the model
GEMMA = {"num_hidden_layers": 6, "sliding_window": 16}  # with layers of two kinds


def batch(length, rows=2):
    ids = torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def fresh():
    """Resets the compiler and its counters."""
    torch._dynamo.reset()
    counters.clear()


def step(model, **inputs):
    loss = model(**inputs).logits.float().square().mean()
    loss.backward()
    return loss.detach()


def assert_same_steps(model, plain, lengths=LENGTHS, **tolerance):
    for length in lengths:
        torch.testing.assert_close(step(model, **batch(length)), step(plain, **batch(length)), **tolerance)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=name, **tolerance)


def compiling(model, **options):
    return Compile(**{"backend": "aot_eager", **options}).training_context(model, tiny_config())


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_ten_lengths_share_one_compilation_and_match_the_uncompiled_model(architecture):
    model, plain = (tiny_model(architecture).train() for _ in range(2))

    with compiling(model):
        assert_same_steps(model, plain, rtol=1e-4, atol=1e-6)

    assert graphs() == 1


@pytest.mark.parametrize(
    ("architecture", "options", "most"),
    [
        ("qwen3", {}, 1),
        pytest.param("mistral", {"sliding_window": 16}, 1, marks=pytest.mark.slow),
        ("gemma3_text", GEMMA, 2),
    ],
)
def test_layers_of_the_same_kind_share_compiled_code(architecture, options, most):
    model = tiny_model(architecture, **options).train()

    with compiling(model, backend="eager"):
        for length in LENGTHS:
            step(model, **batch(length))

    assert 1 <= graphs() <= 2 * most


def test_a_batch_of_a_single_row_takes_one_more_compilation():
    model = tiny_model("llama").train()

    with compiling(model, backend="eager"):
        for rows, length in [(4, 17), (3, 20), (1, 20), (2, 5), (1, 30)]:
            step(model, **batch(length, rows))

    assert graphs() == 2


def test_regions_model_compiles_the_whole_decoder():
    model, plain = (tiny_model("llama").train() for _ in range(2))

    with compiling(model, regions="model", backend="eager", fullgraph=True):
        assert_same_steps(model, plain, LENGTHS[:4], rtol=1e-4, atol=1e-6)

    assert graphs() == 1


def test_a_decoder_whose_wrapper_is_bypassed_is_compiled():
    options = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
    model, plain = (tiny_model("opt", **options).train() for _ in range(2))

    with compiling(model, regions="model", backend="eager"):
        assert_same_steps(model, plain, LENGTHS[:4], rtol=1e-4, atol=1e-6)

    assert graphs()


@pytest.mark.parametrize("reentrant", [pytest.param(True, marks=pytest.mark.slow), False])
def test_gradient_checkpointing_uses_the_compiled_layers(reentrant):
    model, plain = (tiny_model("llama").train() for _ in range(2))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()

    with compiling(model, backend="eager"):
        assert_same_steps(model, plain, LENGTHS[:4], rtol=1e-4, atol=1e-6)

    assert graphs() <= 2


@pytest.mark.slow
def test_adapters_are_compiled_with_their_layers():
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(0)
        settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        return peft.get_peft_model(tiny_model("llama"), settings).train()

    model, plain = adapted(), adapted()

    with compiling(model, backend="eager"):
        assert_same_steps(model, plain, LENGTHS[:4], rtol=1e-4, atol=1e-6)

    assert graphs() <= 2


def test_generation_with_a_cache_is_not_compiled():
    model, prompt = tiny_model("llama").eval(), torch.arange(3, 13)[None]
    expected = model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)

    with compiling(model, backend="eager"):
        made = model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)

    assert torch.equal(made, expected)
    assert not graphs()


def test_parameters_keep_their_names_while_compiled():
    model = tiny_model("llama")
    names = list(model.state_dict())

    with compiling(model):
        assert list(model.state_dict()) == names


def state(model):
    return [module.__dict__.get("_compiled_call_impl") for module in model.modules()]


@pytest.mark.parametrize("regions", ["layers", "model"])
def test_the_model_is_plain_after_exit(regions):
    model = tiny_model("llama")

    with compiling(model, regions=regions, backend="eager"):
        assert any(state(model))
        step(model, **batch(8))

    assert state(model) == [None] * len(state(model))
    step(model, **batch(9))
    assert graphs() == 1


def test_an_exception_restores_the_model_and_earlier_compiled_calls():
    model = tiny_model("llama")
    model.model.layers[0].mlp.compile(backend="eager")
    before = state(model)

    with pytest.raises(RuntimeError, match="training"), compiling(model):
        raise RuntimeError("training failed")

    assert state(model) == before


def test_a_warning_is_logged_if_no_compiled_layer_was_called(caplog):
    with compiling(tiny_model("llama")):
        pass

    assert "no compiled LlamaDecoderLayer was called" in caplog.text


def test_layers_under_an_adapter_are_found():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))

    assert decoder_layers(model) == list(model.base_model.model.model.layers)
    assert decoder_around(model, decoder_layers(model)[0]) is model.base_model.model.model


def test_a_model_that_does_not_declare_its_layers_is_refused():
    model = tiny_model("llama")
    model._no_split_modules = None

    with pytest.raises(ConfigError, match="does not declare its layers"), compiling(model):
        pass


@pytest.mark.parametrize("name", ["torch_compile", "torch_compile_backend", "torch_compile_mode"])
def test_torch_compile_of_the_trainer_is_refused(name):
    (problem,) = run_problems(Compile(), train={name: "inductor" if name.endswith("backend") else True})

    assert problem.where == f"train.{name}"


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    (problem,) = run_problems(Compile(backend="aot_eagre"))

    assert "aot_eager" in problem.fix


def test_a_mode_is_refused_for_other_backends():
    assert run_problems(Compile(backend="eager", mode="max-autotune"))[0].where == "plugin compile, option mode"


def test_inductor_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)

    assert "C++ compiler" in run_problems(Compile())[0].what


def test_regions_model_is_refused_with_flash_attn():
    (problem,) = run_problems(Compile(regions="model"), plugins={"flash_attn": {}})

    assert problem.fix == "set regions: layers"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fullgraph_is_refused_with_flash_attn_on_a_cpu():
    assert "one document at a time" in run_problems(Compile(fullgraph=True), plugins={"flash_attn": {}})[0].what


@pytest.mark.slow
def test_the_number_of_documents_does_not_trigger_recompilation():
    from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
    from sftkit_plugins.flash_attn.model import attending

    def laid_out(*lengths):
        made = PaddingFreeCollator()([{"input_ids": [*range(n)], "labels": [*range(n)]} for n in lengths])
        return {name: value for name, value in made.items() if name not in ("labels", "row_lengths")}

    model, counted = tiny_model("llama").train(), []
    with attending(model, "varlen"), compiling(model, backend="eager"):
        for lengths in [(5, 9), (7, 3, 12), (20,), (4, 4, 4, 4), (6, 30, 2, 8, 11), (3, 3)]:
            step(model, **laid_out(*lengths), use_cache=False)
            counted.append(graphs())

    assert counted[1] == counted[-1]


def run(tmp_path, *plugins, name="run", **train):
    settings = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "logging_steps": 1}
    return Pipeline(
        model=tiny_model("llama"),
        tokenizer=tiny_tokenizer(chat_template=CHATML),
        data=tiny_conversations(24),
        eval=tiny_conversations(6),
        plugins=[*plugins, "no:checks"],  # the held-out rows are training rows
        train={**settings, "output_dir": str(tmp_path / name), **train},
    ).run()


@pytest.mark.parametrize(
    "plugins",
    [
        ["packing"],
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["packing", "flash_attn"], marks=pytest.mark.slow),
        pytest.param(["flash_attn", "peft:r=2"], marks=pytest.mark.slow),
    ],
)
def test_a_run_equals_the_uncompiled_one_and_returns_a_plain_model(tmp_path, plugins):
    compiled = run(tmp_path, *plugins, Compile(backend="eager"))
    plain = run(tmp_path, *plugins, name="plain")

    assert compiled.metrics == pytest.approx(plain.metrics, rel=1e-4)
    assert state(compiled.model) == [None] * len(state(compiled.model))
    for (name, one), other in zip(compiled.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_inductor_gives_the_results_of_the_uncompiled_model(architecture):
    model, plain = (tiny_model(architecture).train() for _ in range(2))

    with compiling(model, backend="inductor"):
        assert_same_steps(model, plain, rtol=1e-3, atol=1e-5)

    assert graphs() == 1
