"""NEFTune's noise is bounded by each document's own length, and is gone without a trace afterwards."""

import math

import pytest
import torch

from sftkit.errors import ConfigError
from sftkit.testing import run_problems, tiny_model
from sftkit_plugins.neftune import NEFTune

WIDTH = 32
IDS = torch.arange(3, 67).view(2, 32)


def noise(model, alpha=5.0, times=24, **inputs):
    """The largest noise at each token ``[B, T]`` over a few forwards, measured at the embedding's output."""
    clean = model.get_input_embeddings()(inputs["input_ids"]).detach()
    seen = []
    with NEFTune(alpha=alpha).inject_noise(model):
        watch = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].detach()))
        for _ in range(times):
            model(**inputs, use_cache=False)
        watch.remove()
    return torch.stack([(noisy - clean).abs().amax(-1) for noisy in seen]).amax(0)


def assert_bound(measured, length, alpha=5.0):
    """The noise stays within alpha / sqrt(L * d), and comes close to it: 24 * 32 draws a token."""
    bound = alpha / math.sqrt(length * WIDTH)
    assert measured.max() <= bound * 1.0001
    assert measured.min() >= bound * 0.95


@pytest.fixture
def model():
    return tiny_model("llama").train()


@pytest.mark.parametrize("alpha", [5.0, 15.0])
def test_noise_of_a_row_is_bounded_by_alpha_over_the_root_of_its_size(model, alpha):
    assert_bound(noise(model, alpha, input_ids=IDS), 32, alpha)


def test_noise_is_uniform(model):
    clean, seen = model.get_input_embeddings()(IDS).detach(), []
    with NEFTune().inject_noise(model):
        model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].detach()))
        for _ in range(20):
            model(input_ids=IDS)

    share = (torch.stack(seen) - clean) / (5.0 / math.sqrt(32 * WIDTH))  # 40960 draws within ±1

    assert abs(share.mean()) < 0.02
    assert abs(share.var() - 1 / 3) < 0.01


def test_noise_is_scaled_by_each_documents_own_length(model):
    places = torch.tensor([[*range(4), *range(28)], [*range(16), *range(15), 0]])

    measured = noise(model, input_ids=IDS, position_ids=places)

    for row, low, high in [(0, 0, 4), (0, 4, 32), (1, 0, 16), (1, 16, 31), (1, 31, 32)]:
        assert_bound(measured[row, low:high], high - low)


def test_packed_documents_get_the_same_noise_as_alone(model):
    packed = noise(model, input_ids=IDS[:1], position_ids=torch.tensor([[*range(8), *range(24)]]))
    alone = noise(model, input_ids=IDS[:1, :8])

    torch.testing.assert_close(packed[:, :8], alone, rtol=0.06, atol=0)


def test_noise_scaled_by_the_whole_row_would_be_too_weak_for_packed_documents(model):
    measured = noise(model, input_ids=IDS[:1], position_ids=torch.arange(4).repeat(8)[None])

    by_row = 5.0 / math.sqrt(32 * WIDTH)  # what transformers.TrainingArguments.neftune_noise_alpha gives
    assert measured.mean() > 2.5 * by_row


def test_a_row_that_begins_inside_a_document_is_a_document_from_its_first_column(model):
    measured = noise(model, input_ids=IDS[:1], position_ids=torch.tensor([[*range(5, 13), *range(24)]]))

    assert_bound(measured[:, :8], 8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_gets_no_noise_and_does_not_count_as_length(model, side):
    real = slice(0, 8) if side == "right" else slice(24, 32)
    mask = torch.ones_like(IDS)
    mask[0] = 0
    mask[0, real] = 1

    measured = noise(model, input_ids=IDS, attention_mask=mask)

    assert_bound(measured[0, real], 8)
    assert (measured[0] == 0).sum() == 24
    assert_bound(measured[1], 32)


def test_noise_keeps_the_type_of_the_embedding():
    model = tiny_model("llama").bfloat16().train()

    with NEFTune().inject_noise(model):
        assert model.get_input_embeddings()(IDS).dtype == torch.bfloat16


def test_each_forward_draws_its_own_noise(model):
    with NEFTune().inject_noise(model):
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_there_is_no_noise_in_evaluation_and_generation(model):
    model.eval()
    logits = model(input_ids=IDS).logits
    made = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)

    with NEFTune().inject_noise(model):
        assert torch.equal(model(input_ids=IDS).logits, logits)
        assert torch.equal(model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False), made)


def test_inputs_embeds_get_no_noise(model):
    embedded = torch.randn(2, 8, WIDTH)
    logits = model(inputs_embeds=embedded).logits

    with NEFTune().inject_noise(model):
        assert torch.equal(model(inputs_embeds=embedded).logits, logits)


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    kinds += ("_forward_hooks_always_called",)
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def test_the_exit_restores_the_model_bitwise(model):
    before, logits = hooks(model), model(input_ids=IDS).logits

    with NEFTune().inject_noise(model):
        model(input_ids=IDS)

    assert hooks(model) == before
    assert torch.equal(model(input_ids=IDS).logits, logits)


def test_an_exception_leaves_no_hook(model):
    before = hooks(model)

    with pytest.raises(RuntimeError, match="training"), NEFTune().inject_noise(model):
        raise RuntimeError("training failed")

    assert hooks(model) == before


def test_a_failed_forward_does_not_affect_the_next(model):
    with NEFTune().inject_noise(model):
        with pytest.raises(IndexError):
            model(input_ids=IDS + 10_000, position_ids=torch.zeros_like(IDS))
        embedded = model.get_input_embeddings()(IDS) - model.get_input_embeddings().weight[IDS]

    assert embedded.abs().max() <= 5.0 / math.sqrt(32 * WIDTH) * 1.0001


def adapted(model, **options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options))


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 4]}])
def test_documents_are_found_with_an_adapter(model, options):
    places = torch.tensor([[*range(8), *range(24)]])

    measured = noise(adapted(model, **options).train(), input_ids=IDS[:1], position_ids=places)

    assert_bound(measured[:, :8], 8)
    assert_bound(measured[:, 8:], 24)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_flow_under_gradient_checkpointing(model, reentrant):
    model = adapted(model).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()

    with NEFTune().inject_noise(model):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_alpha_must_be_positive():
    with pytest.raises(ConfigError, match="alpha"):
        NEFTune(alpha=0)


def test_transformers_own_noise_is_refused():
    problems = run_problems(NEFTune(), train={"neftune_noise_alpha": 5.0})

    assert [problem.where for problem in problems] == ["train.neftune_noise_alpha"]
    assert not run_problems(NEFTune())
