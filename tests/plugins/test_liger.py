"""Liger's kernels match transformers, its losses match the core, and nothing of it remains after training.

They run in a separate process with Triton's interpreter: `tests/plugins/liger/measure.py`.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftkit.errors import ConfigError
from sftkit.plugin.select import Choice, select
from sftkit.testing import plugin_set, run_problems, tiny_config, tiny_model
from sftkit_plugins.liger import Liger
from sftkit_plugins.liger.catalogue import kernels_by_type
from sftkit_plugins.liger.loss import _chunk_factor

pytest.importorskip("liger_kernel")

MEASURE = Path(__file__).with_name("liger") / "measure.py"
LLAMA = {"_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"}
LLAMA |= {"_swiglu_forward_kernel", "_swiglu_backward_kernel"}
GEMMA = {"_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"}
GEMMA |= {"_geglu_tanh_forward_kernel", "_geglu_tanh_backward_kernel"}
LOSSES = ["cross_entropy", "cross_entropy, weighted"]
LOSSES += ["fused_linear_cross_entropy", "fused_linear_cross_entropy, weighted"]
#: The other types that a tiny model can be made of, and the kernels left out: fused experts are tuned on a GPU.
MORE = ["qwen3", "qwen2", "gemma", "gemma3_text", "gemma4_text", "mistral", "ministral", "phi3", "granite", "glm4"]
MORE += ["olmo2", "olmo3", "smollm3", "exaone4", "falcon_h1", "gpt_oss", "llama4_text", "hunyuan_v1_dense", "nemotron"]
MORE += ["qwen3_5_text", "mixtral,swiglu", "qwen3_moe,swiglu"]


def measure(*arguments):
    """The results of the program, by argument."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(MEASURE), *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return measure(
        "kernels:llama",
        "adapter:llama",
        "norms_as_adapter:llama",
        "other_activation:llama",
        "loss:gemma2",
        "adapted_head:llama",
        "run:packing,peft",
    )


@pytest.fixture(scope="module")
def more():
    return measure("kernels:gemma2", "loss:granite")


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def problems(plugin, **sections):
    plugin_set(plugin)
    return [str(problem) for problem in run_problems(plugin, **sections)]


@pytest.mark.parametrize(("case", "kernels"), [("kernels:llama", LLAMA), ("adapter:llama", LLAMA)])
def test_losses_and_gradients_match_transformers_and_the_kernels_ran(found, case, kernels):
    assert found[case]["loss"] < 1e-5
    assert found[case]["gradient"] < 1e-5
    assert set(found[case]["launched"]) == kernels


@pytest.mark.parametrize("case", ["kernels:llama", "adapter:llama"])
def test_the_model_and_a_fresh_one_are_bitwise_unchanged_afterwards(found, case):
    assert found[case]["same_model_bitwise"]
    assert found[case]["fresh_model_bitwise"]


@pytest.mark.parametrize("case", ["kernels:llama", "adapter:llama"])
def test_model_and_transformers_are_restored_even_after_an_exception(found, case):
    assert found[case]["attributes_kept"]
    assert found[case]["traces"] == []


def test_a_model_created_during_training_has_plain_layers(found):
    assert found["kernels:llama"]["made_meanwhile"] == []


def test_a_kernel_that_would_bypass_an_adapter_is_refused(found):
    refused = found["norms_as_adapter:llama"]
    assert "the kernel would bypass the adapter on LlamaRMSNorm -> set rms_norm: false" in refused["error"]
    assert refused["attributes_kept"]
    assert refused["traces"] == []


def test_a_model_with_a_different_activation_function_is_refused(found):
    refused = found["other_activation:llama"]
    assert "computes swiglu, but this model has the activation function 'gelu'" in refused["error"]
    assert refused["attributes_kept"]


@pytest.mark.slow
def test_kernels_of_another_model_match_transformers_and_leave_no_trace(more):
    measured = more["kernels:gemma2"]
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert set(measured["launched"]) == GEMMA
    assert measured["same_model_bitwise"]
    assert measured["fresh_model_bitwise"]
    assert measured["attributes_kept"]
    assert measured["traces"] == []


@pytest.mark.parametrize("loss", LOSSES)
def test_both_losses_match_the_core_with_caps_and_weights(found, loss):
    assert_equal_losses(found["loss:gemma2"][loss])


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_both_losses_match_the_core_with_scales_and_weights(more, loss):
    assert_equal_losses(more["loss:granite"][loss])


def assert_equal_losses(measured):
    assert measured["launched"] == ["liger_cross_entropy_kernel"]
    assert measured["loss"] < 1e-6
    assert measured["evaluated"] < 1e-6
    assert measured["tokens"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert measured["accuracy"] == 0


def test_a_head_with_an_adapter_uses_the_plain_kernel_and_logs_a_warning(found):
    measured = found["adapted_head:llama"]
    assert measured["launched"] == ["liger_cross_entropy_kernel"]
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert any("not a plain linear layer" in line for line in measured["logs"])


def test_the_fused_loss_is_refused_for_a_head_with_an_adapter(found):
    assert (
        "option fused_linear_cross_entropy: the fused loss needs a plain linear output head"
        in found["adapted_head:llama"]["error"]
    )


def test_a_packed_run_with_adapters_matches_one_without_liger(found):
    measured = found["run:packing,peft"]
    assert measured["trained"] > 1
    assert max(measured["metrics"].values()) < 1e-5
    assert measured["logits"] < 1e-5
    assert measured["own_forwards"] == []
    assert measured["traces"] == []


@pytest.mark.slow
def test_a_run_that_trains_all_weights_matches_one_without_liger():
    measured = measure("run")["run"]
    assert max(measured["metrics"].values()) < 1e-5
    assert measured["logits"] < 1e-4
    assert measured["own_forwards"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
def test_other_model_types_match_transformers_and_are_restored(kind):
    measured = measure(f"kernels:{kind}")[f"kernels:{kind}"]
    assert measured["launched"]
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert measured["same_model_bitwise"]
    assert measured["fresh_model_bitwise"]
    assert measured["attributes_kept"]
    assert measured["traces"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["adapter:gemma2", "adapter:qwen3", "whole_norms:llama"])
def test_losses_and_gradients_match_with_other_adapters(case):
    measured = measure(case)[case]
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert measured["attributes_kept"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "phi3", "cohere", "gpt2"])
def test_losses_of_other_heads_match_the_core(kind):
    for measured in measure(f"loss:{kind}")[f"loss:{kind}"].values():
        assert measured["loss"] < 1e-6
        assert measured["gradient"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [32_000, 128_256, 151_936])
@pytest.mark.parametrize("hidden", [1024, 4096])
def test_chunks_of_the_fused_loss_hold_about_half_a_gigabyte_of_logits(hidden, vocabulary):
    tokens = 32_768
    factor = _chunk_factor(tokens, hidden)
    chunks = math.ceil(vocabulary / (factor * hidden))  # liger_kernel.ops.fused_linear_cross_entropy
    chunk = 2 ** math.ceil(math.log2(math.ceil(tokens / chunks)))
    assert 1 << 28 < 4 * vocabulary * chunk < 1 << 30


@pytest.mark.slow
def test_the_fused_loss_in_bfloat16_matches_the_core_within_its_precision():
    for measured in measure("mixed_precision:llama")["mixed_precision:llama"].values():
        assert measured["loss"] < 0.02
        assert measured["gradient"] < 0.02


def test_liger_is_refused_without_a_gpu_before_loading(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(Path, "exists", lambda self: False)

    assert ["needs a GPU" in line for line in problems(Liger())] == [True]


def test_the_command_line_exits_with_code_2_without_a_gpu(fresh_cli, tmp_path):
    variables = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    if Path("/dev/kfd").exists() or Path("/dev/xpu").exists():
        pytest.skip("there is a GPU that no variable hides")

    done = fresh_cli("run", "-p", "liger", cwd=tmp_path, env=variables, code=2)

    assert "plugin liger: liger needs a GPU" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("interpreted")
def test_a_supported_model_type_has_no_problems(tmp_path):
    assert problems(Liger(), model={"name": saved(tmp_path, "llama")}) == []


@pytest.mark.usefixtures("interpreted")
def test_an_unsupported_model_type_is_refused_with_the_nearest_name(tmp_path):
    (line,) = problems(Liger(), model={"name": saved(tmp_path, "mistrall")})

    assert "no kernels for the model type 'mistrall' -> did you mean 'mistral'? It has deepseek_v2" in line


@pytest.mark.usefixtures("interpreted")
def test_a_kernel_that_the_model_type_lacks_is_refused(tmp_path):
    (line,) = problems(Liger(geglu=True), model={"name": saved(tmp_path, "llama")})

    assert "option geglu: liger-kernel has no geglu kernel for llama -> remove the option; the kernels" in line
    assert "swiglu" in line


@pytest.mark.usefixtures("interpreted")
def test_the_two_losses_cannot_be_combined():
    (line,) = problems(Liger(cross_entropy=True, fused_linear_cross_entropy=True))

    assert "option cross_entropy" in line
    assert "cannot be combined" in line


@pytest.mark.usefixtures("interpreted")
def test_kernels_of_transformers_are_refused():
    (line,) = problems(Liger(), model={"options": {"use_kernels": True}})

    assert line.startswith("model.options.use_kernels")


def test_a_loaded_model_of_an_unsupported_type_is_refused():
    hook = plugin_set(Liger()).hook.patch_kernels

    with pytest.raises(ConfigError, match="no kernels for the model type 'gpt2'"):
        hook(model=tiny_model("gpt2"), config=tiny_config())


def test_the_model_type_is_checked_before_weights_are_read(tmp_path):
    directory = saved(tmp_path, "gpt2")  # no weights are there: reading them would be another error
    hook = plugin_set(Liger()).hook.load_model

    with pytest.raises(ConfigError, match="no kernels for the model type 'gpt2'"):
        hook(config=tiny_config(model={"name": directory}), options={})


def saved(directory, model_type):
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(directory)


def test_types_and_kernels_read_from_the_source_match_the_package():
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    assert kernels_by_type().keys() == MODEL_TYPE_TO_APPLY_LIGER_FN.keys()
    assert kernels_by_type()["gemma2"] == {"rope": True, "rms_norm": True, "geglu": True}
    assert "rope" not in kernels_by_type()["glm4"]  # liger refuses it there


def beside_dft(plugin):
    plugins, found = select([Choice("liger", instance=plugin), Choice("loss", {"type": "dft"})])
    assert found == []
    return plugins.hook.make_loss(model=tiny_model(), config=tiny_config())


def test_the_loss_of_another_plugin_takes_precedence():
    assert type(beside_dft(Liger())).__name__ == "ChosenLoss"


def test_requesting_a_loss_is_an_error_if_another_plugin_provides_one():
    with pytest.raises(ConfigError, match="another plugin already provides the loss of this run, ChosenLoss"):
        beside_dft(Liger(cross_entropy=True))


def test_the_fused_loss_is_the_default_and_can_be_turned_off():
    hook, model = plugin_set(Liger()).hook.make_loss, tiny_model()
    off = plugin_set(Liger(fused_linear_cross_entropy=False)).hook.make_loss

    assert type(hook(model=model, config=tiny_config())).__name__ == "FusedLinearCrossEntropy"
    assert off(model=model, config=tiny_config()) is None
