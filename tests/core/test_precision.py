"""Mixed precision that the device does not compute is refused by check and run alike, before data is read."""

from __future__ import annotations

import pytest

from sftkit import Pipeline
from sftkit.errors import ConfigError
from sftkit.models import precision
from sftkit.models.precision import precision_problems
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer

CPU = {"use_cpu": True}


def problems(train, adapted=False, loaded=None, **model):
    return [problem.what for problem in precision_problems(tiny_config(train=train, model=model), loaded, adapted)]


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU."""

    def pretend(bf16=True, tf32=True):
        monkeypatch.setattr(precision, "_device", lambda config: "cpu" if config.train.get("use_cpu") else "cuda")
        monkeypatch.setattr(precision, "_has_bf16", lambda: bf16)
        monkeypatch.setattr(precision, "_has_tf32", lambda: tf32)

    return pretend


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ({"fp16": True, **CPU}, "a CPU does not train in fp16"),
        ({"tf32": True, **CPU}, "tf32 needs an NVIDIA GPU"),
        ({"fp16": True, "bf16": True, **CPU}, "fp16 and bf16 are both set"),
    ],
)
def test_check_and_run_refuse_it_with_the_same_words(tmp_path, train, what):
    run = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data="none.jsonl",
        train={"output_dir": str(tmp_path / "run"), **train},
    )
    assert any(what in problem.what for problem in run.check())
    with pytest.raises(ConfigError, match=what):
        run.run()


def test_an_old_gpu_does_not_compute_in_bfloat16(gpu):
    gpu(bf16=False, tf32=False)
    assert problems({"bf16": True}) == [
        "bf16 needs a GPU that computes in bfloat16; this GPU does not compute in bfloat16"
    ]
    assert problems({"bf16_full_eval": True})
    assert problems({"tf32": True})
    assert not problems({"bf16": True, **CPU})


def test_a_new_gpu_computes_everything(gpu):
    gpu()
    for key in precision.KEYS:
        assert not problems({key: True})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fp16_needs_float32_weights_unless_an_adapter_is_trained(gpu, dtype):
    gpu()
    assert problems({"fp16": True}, dtype=dtype) == [
        f"fp16 scales gradients of float32 weights, but those of the model are in {dtype}"
    ]
    assert not problems({"fp16": True}, adapted=True, dtype=dtype)
    assert not problems({"bf16": True}, dtype=dtype)


def test_the_checkpoint_or_the_loaded_model_decides_the_type_of_the_weights(gpu, tmp_path):
    gpu()
    tiny_model().bfloat16().save_pretrained(tmp_path)
    assert problems({"fp16": True}, name=str(tmp_path), dtype="auto")
    assert not problems({"fp16": True}, name=str(tmp_path))
    assert problems({"fp16": True}, loaded=tiny_model().half())
    assert not problems({"fp16": True}, loaded=tiny_model())
