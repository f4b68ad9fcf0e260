"""Resumed runs, and checkpoints that are loaded again."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field

import pytest
from safetensors.torch import load_file, save_file

from sftkit import Plugin, checkpoints, hookimpl
from sftkit.errors import RunError
from sftkit.testing import tiny_model

SAVED_UNDER_OTHER_NAMES = ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.slow)]
SAVING = {"save_steps": 2, "save_strategy": "steps", "lr_scheduler_type": "constant", "learning_rate": 1e-2}


def whole_and_resumed(make_run, *, train=None, **options):
    """The results of a run of four steps, and of one that is resumed after two."""
    train = {**SAVING, **(train or {})}
    whole = make_run("whole", train={**train, "max_steps": 4}, **options).run()
    make_run("resumed", train={**train, "max_steps": 2}, **options).run()
    return whole, make_run("resumed", train={**train, "max_steps": 4}, resume=True, **options).run()


def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(make_run, distance):
    whole, resumed = whole_and_resumed(make_run, plugins=["neftune"])
    assert distance(whole.model, resumed.model) == 0


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_after_its_last_step_trains_no_other(
    make_run, distance, log_of, rows, tmp_path, streaming
):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(file), "streaming": streaming}
    train = {**SAVING, "max_steps": 3, "logging_steps": 1}
    whole = make_run("run", data=data, train=train).run()
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    resumed = make_run("run", data=data, train=train, resume=True).run()
    assert distance(whole.model, resumed.model) == 0
    assert max(entry["step"] for entry in log_of(resumed)) == 3


@pytest.mark.parametrize("architecture", SAVED_UNDER_OTHER_NAMES)
def test_a_resumed_run_finds_weights_saved_under_other_names(make_run, distance, architecture):
    whole, resumed = whole_and_resumed(make_run, model=tiny_model(architecture))
    assert distance(whole.model, resumed.model) == 0


@pytest.mark.slow
def test_a_resumed_run_continues_to_count_trained_tokens(make_run, log_of):
    results = whole_and_resumed(make_run, train={"logging_steps": 1})
    counts = [[entry["trained_tokens"] for entry in log_of(result) if "trained_tokens" in entry] for result in results]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("architecture", SAVED_UNDER_OTHER_NAMES)
def test_the_best_model_is_found_under_other_names(make_run, distance, rows, held_out, tmp_path, architecture):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    each_step = {"save_steps": 1, "save_strategy": "steps", "eval_steps": 1, "eval_strategy": "steps"}
    train = {**best, **each_step, "learning_rate": 1e-2}
    made = make_run(model=tiny_model(architecture), eval=held_out[:4], train=train).run()
    first = type(made.model).from_pretrained(tmp_path / "run" / "checkpoint-1")  # the loss falls, and higher is better
    assert distance(made.model, first) == 0


def test_a_checkpoint_that_lacks_weights_is_refused(make_run, tmp_path):
    train = {"save_steps": 1, "save_strategy": "steps"}
    make_run(train=train).run()
    path = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "layers.0.mlp" not in name}
    save_file(kept, path, {"format": "pt"})
    manifest, _ = checkpoints.read(path.parent, 2)
    checkpoints.write(path.parent, {name: value for name, value in manifest.items() if name != "files"})
    with pytest.raises(RunError, match=r"checkpoint-2: the checkpoint lacks 3 weights of LlamaForCausalLM"):
        make_run(train={**train, "max_steps": 4}, resume=True).run()


def test_resuming_with_other_data_or_plugins_is_refused(make_run, rows):
    train = {"save_steps": 1, "save_strategy": "steps"}
    make_run(train=train).run()
    with pytest.raises(RunError, match=f"the data has 6 rows, and had {len(rows)}"):
        make_run(data=rows[:6], train=train, resume=True).run()
    with pytest.raises(RunError, match=f"the data still has {len(rows)} rows, but other contents"):
        make_run(data=rows[::-1], train=train, resume=True).run()
    with pytest.raises(RunError, match=r"plugins.neftune: changed since the run began: it was not selected"):
        make_run(plugins=["neftune"], train=train, resume=True).run()


@dataclass(frozen=True)
class Remembering(Plugin):
    """Remembers the rows of each forward of the training."""

    seen: list[list[tuple[int, ...]]] = field(default_factory=list)

    @hookimpl
    def training_context(self, model, config, rows, collator):
        @contextlib.contextmanager
        def remembering():
            def remember(_, arguments, __):
                if model.training:
                    self.seen.append([tuple(ids) for ids in arguments[0].tolist()])

            hook = model.get_input_embeddings().register_forward_hook(remember)
            yield
            hook.remove()

        return remembering()


@pytest.mark.parametrize(("batch", "accumulation", "steps"), [(3, 2, 6), (4, 1, 7), (1, 1, 20), (16, 1, 4)])
def test_steps_of_other_sizes_train_each_row_of_the_epoch_once(make_run, tmp_path, batch, accumulation, steps):
    """Two epochs of eleven rows; the first two steps have two rows each."""
    rows = [{"prompt": "Q", "completion": letter} for letter in "abcdefghijk"]
    train = {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 2, **SAVING, "save_total_limit": 9}
    before, after = Remembering(), Remembering()
    make_run(data=rows, train=train, plugins=[before, "no:flash_attn"]).run()
    run = tmp_path / "run"
    for checkpoint in run.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-2":
            shutil.rmtree(checkpoint)
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": "running"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    train |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    resumed = make_run(
        data=rows, train=train, plugins=[after, "no:flash_attn"], resume=True, allow_changes=["train"]
    ).run()
    assert json.loads((resumed.directory / "manifest.json").read_text())["parts"][-1]["to_step"] == steps
    first, later = ([row for batch in plugin.seen for row in batch] for plugin in (before, after))
    assert sorted(first[:4] + later[:7]) == sorted(later[7:]) == sorted(set(first))
