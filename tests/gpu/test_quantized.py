"""LoRA on a base that bitsandbytes holds in 4 or 8 bits, on the device."""

from __future__ import annotations

import pytest
import torch

from sftkit.models.adapt import adapted_model
from sftkit.testing import CHATML, plugin_set, tiny_config, tiny_conversations, tiny_tokenizer
from sftkit_plugins.bitsandbytes import BitsAndBytes
from sftkit_plugins.peft import PEFT

pytestmark = pytest.mark.gpu
pytest.importorskip("peft", reason="needs peft")
pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")

#: 4 bits: the forward multiplies by the dequantized weights. 8 bits: on a GPU it rounds the activations to 8 bits, too,
#: which moves these gradients by 3 % where it is done to the inputs of the plain model's layers.
GRADIENTS = {4: 1e-3, 8: 0.1}
SIZES = {"initializer_range": 0.02}  # of models as they are initialized: larger weights amplify rounding


@pytest.fixture
def base(build, tmp_path):
    """A model on disk."""
    build("llama", **SIZES).cpu().save_pretrained(tmp_path / "base")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def load(base, device):
    """Loads it in some bits, on the device, as a run does."""
    from transformers import AutoModelForCausalLM

    def loaded(bits, **train):
        config = tiny_config(model={"name": base}, train={"use_cpu": device.type == "cpu", **train})
        options = BitsAndBytes(bits=bits).model_options(config=config)
        return AutoModelForCausalLM.from_pretrained(base, **options)

    return loaded


def adapted(model):
    """LoRA on the model, as a run puts it there; its second factor is not left at zero."""
    plugins = plugin_set(PEFT(r=4))
    model = adapted_model(model, tiny_config(model={"name": "loaded LlamaForCausalLM"}), plugins, [])
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.train()


def stored(model):
    """The quantized weights, bit by bit, by name."""
    kinds = ("Params4bit", "Int8Params")
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if type(weight).__name__ in kinds
    }


def dequantized(model):
    """The weights of the quantized layers as the products see them, in float32 and by name."""
    from bitsandbytes.functional import dequantize_4bit

    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            found[name] = dequantize_4bit(weight.data, weight.quant_state).float()
        elif type(weight).__name__ == "Int8Params":
            found[name] = weight.data.float() * (weight.SCB.float()[:, None] / 127)
    return found


def adapter_gradients(model, device):
    ids = torch.randint(3, 320, (4, 60), generator=torch.Generator().manual_seed(0)).to(device)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_finite_and_near_those_on_the_dequantized_weights(
    build, load, distance, device, record_property, bits
):
    model = load(bits)
    assert next(model.parameters()).device == device
    plain, weights = build("llama", **SIZES), dequantized(model)
    layers = dict(plain.named_modules())
    assert len(weights) == 7 * plain.config.num_hidden_layers
    for name, weight in weights.items():
        assert 0 < distance(weight, layers[name].weight.detach()) < 0.2  # rounded, and still the same layer's
        layers[name].weight.data.copy_(weight)

    found, expected = (adapter_gradients(adapted(each), device) for each in (model, plain))

    assert all("lora_" in name for name in found)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    error = distance(found, expected)
    record_property("error of gradients", f"{error:.2e}, allowed {GRADIENTS[bits]:.2e}")
    assert error < GRADIENTS[bits]


@pytest.mark.parametrize(("bits", "train"), [(4, {}), (8, {}), (4, {"bf16": True}), (8, {"bf16": True})])
def test_the_loss_falls_and_the_base_stays_as_it_was(base, load, pipeline, device, bits, train):
    paged = {"optim": "paged_adamw_8bit" if device.type == "cuda" else "adamw_bnb_8bit"} if train else {}
    values = {"max_steps": 20, "learning_rate": 1e-2, "eval_on_start": True, **train, **paged}
    before = stored(load(bits, **train))

    held_out = tiny_conversations(4, first=100)
    result = pipeline(base, BitsAndBytes(bits=bits), PEFT(r=4), train=values, eval=held_out).run()

    start, end = result.metrics["eval_loss_before"], result.metrics["eval_loss"]
    assert end < 0.85 * start
    after = stored(result.model)
    assert after.keys() == before.keys()
    assert [name for name, weight in before.items() if not torch.equal(after[name], weight)] == []
    assert {weight.dtype for weight in result.model.parameters() if weight.requires_grad} == {torch.float32}
