"""The size of a quantized base, counted before it is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sftkit import Pipeline
from sftkit.memory.quantized import loaded_quantized, stored_quantized
from sftkit.memory.run import estimate_run
from sftkit.memory.unloaded import UnknownMemoryError
from sftkit.models.unloaded import without_weights

SETTINGS = {
    "8 bits": {"load_in_8bit": True},
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, scales quantized": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8 bits, without a layer": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "down_proj"]},
}
WIDE = {"hidden_size": 256, "intermediate_size": 704, "head_dim": 64}


@pytest.fixture(params=SETTINGS)
def quantized(request, make_model, tmp_path):
    """A model on the meta device, the settings, the model loaded with them, and the bytes that this takes."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    whole = make_model(**WIDE)
    whole.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(**SETTINGS[request.param])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    states = [weight.quant_state for weight in loaded.parameters() if getattr(weight, "quant_state", None)]
    scales = sum(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0) for state in states)
    scales += sum(module.state_dict()["SCB"].nbytes for module in loaded.modules() if "SCB" in module.state_dict())
    held = scales + sum(value.nbytes for value in (*loaded.parameters(), *loaded.buffers()))
    return without_weights(whole), settings, loaded, held


def test_a_base_to_be_quantized_is_counted_at_its_final_size(quantized):
    model, settings, _, held = quantized
    total, restored = loaded_quantized(model, settings).sizes(model)
    assert total == pytest.approx(held, rel=0.003)
    assert restored == 704 * 256 * 4


def test_a_quantized_checkpoint_is_counted_by_its_tensors(quantized, tmp_path):
    model, _, loaded, held = quantized
    loaded.save_pretrained(tmp_path / "quantized")
    total, restored = stored_quantized(model, tmp_path / "quantized").sizes(model)
    assert total == pytest.approx(held, rel=0.01)
    assert restored == 704 * 256 * 4


def test_a_checkpoint_in_full_size_has_no_quantized_weights(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    assert stored_quantized(model, tmp_path) == ([], 0)


def test_layers_stored_under_other_names_are_not_guessed(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name.replace("mlp", "ffn"): value for name, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"no tensor of the layer model\.layers\.0\.mlp\.gate_proj"):
        stored_quantized(model, tmp_path)


def test_an_unknown_method_is_not_guessed(make_model):
    with pytest.raises(ValueError, match="no-such-method"):
        loaded_quantized(without_weights(make_model()), {"quant_method": "no-such-method"})


def test_a_run_whose_method_is_unknown_has_no_estimate(directory, tmp_path):
    base = shutil.copytree(directory, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "unknown"}}))
    weights = load_file(base / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, base / "model.safetensors")
    train = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
    run = Pipeline(model=str(base), data=[{"prompt": "a", "completion": "b"}] * 4, train=train)
    with pytest.raises(UnknownMemoryError, match="the size of its quantized weights is not known"):
        estimate_run(run.prepare())
