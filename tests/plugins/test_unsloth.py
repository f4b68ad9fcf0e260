"""Unsloth: what is refused without it, and runs of the real package if it can be installed.

Unsloth needs older releases of transformers, trl and datasets than these tests use, so it gets its own environment:
`tests/plugins/unsloth/measure.py` explains what runs there.
"""

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sftkit.errors import ConfigError
from sftkit.memory.unloaded import UnknownMemoryError
from sftkit.testing import run_problems, tiny_config, tiny_model
from sftkit_plugins.unsloth import Unsloth

ROOT = Path(__file__).resolve().parents[2]
MEASURE = Path(__file__).with_name("unsloth") / "measure.py"
#: The packages that unsloth is tested with, besides the installed ones; without their dependencies.
PINS = ["unsloth==2026.10.9", "unsloth_zoo==2026.10.9", "transformers==5.17.0", "trl==1.15.0", "datasets==4.8.5"]
PINS += ["huggingface_hub==1.33.0"]
BESIDE = ["requests", "urllib3", "certifi", "httpx", "httpcore", "h11", "anyio", "idna", "charset-normalizer"]
BESIDE += ["pillow", "psutil", "regex", "sentencepiece", "protobuf", "torchao"]


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Calls functions of measure.py in an environment with unsloth."""
    directory = tmp_path_factory.mktemp("unsloth")
    venv.create(directory / "env", with_pip=False)
    python = directory / "env" / "bin" / "python"
    (site,) = (directory / "env").glob("lib/python*/site-packages")
    (site / "zz_here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    for packages in ([*PINS, *BESIDE], ["--no-build-isolation", "--ignore-installed", "-e", str(ROOT)]):
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"unsloth cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

    def run(name):
        command = [str(python), str(MEASURE), name]
        # unsloth writes its compiled cache into the working directory
        done = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])[name]

    return run


def problems(plugin, **sections):
    return [str(problem) for problem in run_problems(plugin, **sections)]


@pytest.mark.slow
def test_losses_equal_those_of_peft_and_peft_reloads_the_adapter(measure):
    found = measure("train")

    assert found["losses"][-1] < found["losses"][0]
    assert found["losses"] == pytest.approx(found["peft_losses"], abs=1e-5)
    assert found["rank"] == found["further_rank"] == 8
    assert len(found["target_modules"]) == 7
    assert found["reloaded"] < 1e-6
    assert found["rewritten"] == []


@pytest.mark.slow
def test_new_tokens_are_trained_and_full_finetuning_trains_everything(measure):
    found = measure("new_tokens")

    assert found["losses"][-1] < found["losses"][0]
    assert found["rows"] >= found["tokens"]
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in found["trained_in_full"]} == {
        "embed_tokens",
        "lm_head",
    }
    assert found["whole_losses"][-1] < found["whole_losses"][0]
    assert found["all_trained"]
    assert not found["has_adapter"]


@pytest.mark.slow
def test_the_package_refuses_unknown_options_and_loaded_models(measure):
    misspelt, duplicate, ignored, missing, foreign = measure("refusals")

    assert "option options.lora_droput" in misspelt
    assert "did you mean 'lora_dropout'?" in misspelt
    assert "option options.r: set by the plugin itself" in duplicate
    assert "attn_implementation: not allowed here -> remove it" in ignored
    assert missing.startswith("model: ")
    assert "unsloth can only train models that it loads" in foreign


@pytest.mark.slow
def test_it_is_refused_together_with_plugin_peft(measure):
    assert measure("conflicts") == ["plugin unsloth: plugins unsloth and peft cannot be used together -> drop peft"]


@pytest.mark.slow
def test_every_argument_is_known_to_the_code_for_gpus(measure):
    found = measure("signatures")

    assert found["class"] == "unsloth.models.llama"
    assert found["unknown_to_loader"] == ["use_safetensors"]  # passed on to transformers
    assert found["unknown_to_adapter"] == []
    assert len(found["known_modes"]) == 4
    assert found["known"] == ["finetune_last_n_layers", "layers_pattern", "qat_scheme", "use_dora"]


@pytest.mark.slow
def test_the_trainer_is_restored_after_loading(measure):
    found = measure("signatures")

    assert {"get_batch_samples", "compute_loss", "training_step"} <= set(found["rewritten"])
    assert found["restored"]


@pytest.mark.slow
def test_the_extra_resolves_in_a_fresh_environment(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    report = tmp_path / "report.json"
    command = [str(tmp_path / "env" / "bin" / "python"), "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["-q", "--report", str(report), f"{ROOT}[unsloth]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = done.stderr.strip().splitlines() or [""]
    if done.returncode and "ResolutionImpossible" not in done.stderr and "conflicting" not in done.stderr:
        pytest.skip(f"there is no package index: {lines[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]

    chosen = {
        item["metadata"]["name"].lower(): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    for name in ("torch", "transformers", "datasets"):
        (own,) = (line for line in metadata.requires("sftkit-train") or [] if Requirement(line).name == name)
        assert Requirement(own).specifier.contains(chosen[name])
    assert Requirement("unsloth>=2026.10.9").specifier.contains(chosen["unsloth"])


def test_without_a_gpu_the_command_exits_with_code_2(fresh_cli, tmp_path):
    if Path("/dev/kfd").exists() or Path("/dev/xpu").exists():
        pytest.skip("there is a GPU that no variable hides")

    done = fresh_cli("run", "-p", "unsloth", cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}, code=2)

    assert "plugin unsloth: needs a GPU, and none is visible here" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_defaults_are_accepted():
    assert problems(Unsloth()) == []


def test_precisions_of_weights_exclude_each_other():
    (line,) = problems(Unsloth(load_in_4bit=True, full_finetuning=True))

    assert "load_in_4bit and full_finetuning exclude each other" in line


def test_full_finetuning_refuses_options_of_the_adapter():
    lines = problems(Unsloth(full_finetuning=True, r=4, lora_dropout=0.1))

    assert [line.split(":")[0] for line in lines] == [
        "plugin unsloth, option r",
        "plugin unsloth, option lora_dropout",
    ]


def test_two_dtypes_are_refused():
    (line,) = problems(Unsloth(dtype="float16"), model={"dtype": "bfloat16"})

    assert "model.dtype is bfloat16, but the plugin's dtype is float16" in line


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "init", "random"),
        ("train", "gradient_checkpointing", True),
        ("train", "activation_checkpointing", True),
    ],
)
def test_settings_that_unsloth_cannot_use_are_refused(section, key, value):
    (line,) = problems(Unsloth(), **{section: {key: value}})

    assert line.startswith(f"{section}.{key}: ")


@pytest.mark.parametrize("name", ["load_in_4bit", "dtype", "attn_implementation", "fast_inference"])
def test_model_options_that_must_be_set_elsewhere_are_refused(name):
    (line,) = problems(Unsloth(), model={"options": {name: True}})

    assert line.startswith(f"model.options.{name}: not allowed here -> ")


def test_the_dtype_follows_the_model_if_it_has_16_bits():
    import torch

    def chosen(plugin, dtype):
        return plugin._loading_arguments(tiny_config(model={"dtype": dtype}))["dtype"]

    assert chosen(Unsloth(), "float32") is None
    assert chosen(Unsloth(), "auto") is None
    assert chosen(Unsloth(), "bfloat16") is torch.bfloat16
    assert chosen(Unsloth(dtype="float32"), "float32") is torch.float32


def test_seed_and_length_default_to_those_of_the_run():
    config = tiny_config(train={"seed": 7}, data={"max_length": 96})

    assert Unsloth()._loading_arguments(config)["random_state"] == 7
    assert Unsloth()._loading_arguments(config)["max_seq_length"] == 96
    assert Unsloth(random_state=3, max_seq_length=64)._loading_arguments(config)["random_state"] == 3


def test_new_tokens_add_embeddings_and_head_to_modules_to_save():
    arguments = Unsloth(modules_to_save=["norm"])._adapter_arguments(tiny_config(), [320])

    assert arguments["modules_to_save"] == ["norm", "embed_tokens", "lm_head"]


def test_unset_options_are_left_to_unsloth():
    assert not {"target_modules", "modules_to_save", "loftq_config"} & set(
        Unsloth()._adapter_arguments(tiny_config(), [])
    )


def test_memory_is_unknown_before_unsloth_loads_the_model():
    import torch

    with torch.device("meta"):
        model = tiny_model()
    with pytest.raises(UnknownMemoryError, match="only models that it has loaded"):
        Unsloth().adapt_model(model, tiny_config(), [])


def test_a_rank_of_0_is_refused():
    with pytest.raises(ConfigError, match="option r"):
        Unsloth(r=0)
