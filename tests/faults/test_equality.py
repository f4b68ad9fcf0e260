"""Rows 22 and 23 of the table of faults: however rows are put into batches, gradients and logits are the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sftkit import Pipeline
from sftkit.testing import packed_rows, tiny_model, tiny_tokenizer
from sftkit_plugins.packing import Packing

ROWS = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(8)]
TOLERANCE = 1e-6  # of each gradient, in float32
LAYOUTS = {
    "micro-batches of two": {"train": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}},
    "micro-batches of one row": {"train": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}},
    "packed": {"plugins": ["packing"]},
    "packed in micro-batches": {
        "plugins": ["packing"],
        "train": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    },
    "packed by the attention": {"plugins": ["flash_attn"]},
    "padded to 64": {"plugins": ["pad:to_multiple_of=64"]},
}


@pytest.fixture
def gradients(tmp_path):
    """The gradients of one step on all rows: with a learning rate of 1, the difference of the weights."""

    def of(name, architecture, plugins=(), train=None):
        settings = {"per_device_train_batch_size": 8, "max_steps": 1, "optim": "sgd", "learning_rate": 1.0}
        settings |= {"lr_scheduler_type": "constant", "max_grad_norm": 0, "use_cpu": True, "save_strategy": "no"}
        run = Pipeline(
            model=tiny_model(architecture),
            tokenizer=tiny_tokenizer(),
            data=ROWS,
            plugins=plugins,
            config={"data": {"max_length": 128}},
            train={**settings, **(train or {}), "output_dir": str(tmp_path / name)},
        ).run()
        before = tiny_model(architecture).state_dict()
        return {key: before[key] - value for key, value in run.model.state_dict().items()}

    return of


@pytest.mark.parametrize(
    ("architecture", "layouts"),
    [
        ("llama", ["micro-batches of two", "packed", "padded to 64"]),
        pytest.param("llama", list(LAYOUTS), marks=pytest.mark.slow),
        pytest.param("gpt2", [name for name in LAYOUTS if "attention" not in name], marks=pytest.mark.slow),
    ],
    ids=["llama", "llama in every layout", "gpt2"],
)
def test_22_micro_batches_packing_and_padding_do_not_change_the_gradients(gradients, architecture, layouts):
    whole = gradients("whole", architecture)
    assert max(value.abs().max() for value in whole.values()) > 1e-2
    for name in layouts:
        found = gradients(name, architecture, **LAYOUTS[name])
        assert max((found[key] - value).abs().max() for key, value in whole.items()) < TOLERANCE, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_23_a_packed_document_has_the_logits_of_itself_alone(architecture, attention):
    model = tiny_model(architecture, attn_implementation=attention).eval()
    documents = [list(range(3, 3 + length)) for length in (9, 7, 5, 11)]
    (row,) = packed_rows(
        Packing(), [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in documents], max_length=32
    )
    ids, positions = torch.tensor([row["input_ids"]]), torch.tensor([row["position_ids"]])
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    starts = [*(positions[0] == 0).nonzero().flatten().tolist(), len(positions[0])]
    for low, high in pairwise(starts):
        alone = model(input_ids=ids[:, low:high]).logits[0]
        torch.testing.assert_close(packed[low:high], alone, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # nothing leaks: other tokens in the first document change nothing in the others
        changed = ids.clone()
        changed[:, : starts[1]] = 200
        other = model(input_ids=changed, position_ids=positions, use_cache=False).logits[0]
    assert torch.equal(other[starts[1] :], packed[starts[1] :])


@pytest.mark.slow
def test_23_a_model_that_leaks_is_refused_before_it_is_trained(start, configure, tmp_path):
    tiny_model("mamba").save_pretrained(tmp_path / "leaks")
    tiny_tokenizer().save_pretrained(tmp_path / "leaks")
    command = start("run", configure(plugins={"packing": {}}), "-o", "run", "-m", "leaks")
    assert command.wait() == 2
    assert "model type mamba does not isolate packed documents" in command.output
