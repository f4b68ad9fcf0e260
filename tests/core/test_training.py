"""The step is right: one divisor for the whole window, packed equals alone, and a run does what it says."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset

from sftkit.errors import ConfigError, DataError, RunError
from sftkit.run.pipeline import Pipeline
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.training.trainer import TokenLossTrainer

MIXED = [
    {"prompt": "### Question: ", "completion": "Paris is the capital of France. " * (1 + number % 4)}
    for number in range(8)
]


def pipeline(tmp_path, *, model=None, data=None, plugins=(), name="run", **options):
    train = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "seed": 0, **options.pop("train", {})}
    train["output_dir"] = str(tmp_path / name)
    return Pipeline(
        model=tiny_model() if model is None else model,
        data=MIXED if data is None else data,
        tokenizer=tiny_tokenizer(),
        plugins=plugins,
        train=train,
        **options,
    )


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def farthest(one, two):
    return max((one[name].float() - two[name].float()).abs().max().item() for name in one)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_micro_batches_give_the_step_of_one_batch(tmp_path, architecture):
    found = []
    for batch, windows in ((8, 1), (2, 4), (1, 8)):
        train = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": windows, "max_steps": 1}
        train |= {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0}
        run = pipeline(tmp_path, model=tiny_model(architecture), name=f"b{batch}", train=train)
        found.append(weights(run.run().model))
    start = weights(tiny_model(architecture))
    assert farthest(start, found[0]) > 1e-3
    assert farthest(found[0], found[1]) < 1e-6
    assert farthest(found[0], found[2]) < 1e-6


def test_packed_rows_give_the_step_of_single_rows(tmp_path):
    train = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0}
    data = {"max_length": 200, "train": "given"}
    alone = pipeline(tmp_path, name="alone", train=train).run()
    packed = pipeline(tmp_path, name="packed", plugins=["packing"], config={"data": data}, train=train).run()
    assert json.loads((packed.directory / "manifest.json").read_text())["data"]["train"]["rows"] < 8
    assert farthest(weights(alone.model), weights(packed.model)) < 1e-5


def test_the_evaluation_loss_is_the_mean_over_all_trained_tokens(tmp_path):
    run = pipeline(tmp_path, eval=MIXED, train={"per_device_eval_batch_size": 3, "max_steps": 1, "eval_on_start": True})
    result = run.run()
    model, total, count = tiny_model().eval(), 0.0, 0
    from sftkit.data.documents import Span
    from sftkit.data.encode import encode

    for row in MIXED:
        made = encode([[Span(row["prompt"], False), Span(row["completion"], True)]], tiny_tokenizer(), "bos_eos")
        ids, labels = torch.from_numpy(made.ids_S).long()[None], torch.from_numpy(made.labels_S).long()[None]
        trained = int((labels != -100).sum())
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
            total += torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="sum").item()
        count += trained
    assert result.metrics["eval_loss_before"] == pytest.approx(total / count, rel=1e-5)
    assert result.metrics["eval_loss"] != result.metrics["eval_loss_before"]


def test_given_objects_are_never_changed(tmp_path):
    model, tokenizer, data = tiny_model(vocab_size=400), tiny_tokenizer(), tiny_conversations()
    before, vocabulary, rows = weights(model), len(tokenizer), json.dumps(data)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.1, "use_cpu": True}
    result = Pipeline(model=model, data=data, tokenizer=tokenizer, plugins=["chatml"], train=train).run()
    assert farthest(before, weights(model)) == 0
    assert (len(tokenizer), tokenizer.chat_template, json.dumps(data)) == (vocabulary, None, rows)
    assert result.tokenizer.chat_template
    assert train == {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.1, "use_cpu": True}


def test_the_run_directory_holds_all_that_is_needed(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = pipeline(tmp_path, plugins=["neftune"], train={"logging_steps": 1}).run()
    names = {path.name for path in result.directory.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json", "log.jsonl"} <= names
    assert not list(result.directory.rglob("*.bin"))
    assert (
        json.loads((result.directory / "config.json").read_text())["use_cache"] is True
    )  # or it would generate slowly
    again = AutoModelForCausalLM.from_pretrained(result.directory)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.eval()(ids).logits, result.model.eval()(ids).logits)
    assert len(AutoTokenizer.from_pretrained(result.directory)) == len(result.tokenizer)
    manifest = json.loads((result.directory / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["config"]["plugins"]["neftune"] == {"alpha": 5.0}
    assert manifest["plugins"]["neftune"]["distribution"] == "sftkit"
    assert manifest["data"]["train"]["rows"] == 8
    assert manifest["metrics"]["train_loss"] == result.metrics["train_loss"]
    assert {"sftkit", "torch", "transformers"} <= set(manifest["versions"])


def test_an_existing_run_is_not_overwritten_without_being_told_to(tmp_path):
    pipeline(tmp_path).run()
    kept = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(ConfigError, match="holds a run already"):
        pipeline(tmp_path).run()
    assert (tmp_path / "run" / "manifest.json").read_text() == kept
    pipeline(tmp_path, overwrite=True, train={"seed": 7}).run()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["seeds"]["seed"] == 7


def test_a_directory_with_other_files_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty, and does not hold a run"):
        pipeline(tmp_path, overwrite=True).run()
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path):
    train = {"save_steps": 2, "save_strategy": "steps", "lr_scheduler_type": "constant", "learning_rate": 1e-2}
    whole = pipeline(tmp_path, name="whole", plugins=["neftune"], train={**train, "max_steps": 4}).run()
    pipeline(tmp_path, name="cut", plugins=["neftune"], train={**train, "max_steps": 2}).run()
    rest = pipeline(tmp_path, name="cut", plugins=["neftune"], train={**train, "max_steps": 4}, resume=True).run()
    assert farthest(weights(whole.model), weights(rest.model)) == 0


SAVED_UNDER_OTHER_NAMES = ["mixtral", "qwen3_moe"]


@pytest.mark.parametrize("architecture", SAVED_UNDER_OTHER_NAMES)
def test_a_resumed_run_has_its_weights_where_they_are_saved_under_other_names(tmp_path, architecture):
    model = tiny_model(architecture)
    train = {"save_steps": 2, "save_strategy": "steps", "lr_scheduler_type": "constant", "learning_rate": 1e-2}
    whole = pipeline(tmp_path, model=model, name="whole", train={**train, "max_steps": 4}).run()
    pipeline(tmp_path, model=model, name="cut", train={**train, "max_steps": 2}).run()
    rest = pipeline(tmp_path, model=model, name="cut", train={**train, "max_steps": 4}, resume=True).run()
    assert farthest(weights(whole.model), weights(rest.model)) == 0


@pytest.mark.parametrize("architecture", SAVED_UNDER_OTHER_NAMES)
def test_the_best_model_is_loaded_where_it_is_saved_under_other_names(tmp_path, architecture):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    train = {
        "save_steps": 1,
        "save_strategy": "steps",
        "eval_steps": 1,
        "eval_strategy": "steps",
        "learning_rate": 1e-2,
    }
    made = pipeline(tmp_path, model=tiny_model(architecture), eval=MIXED[:4], train={**best, **train}).run()
    first = type(made.model).from_pretrained(tmp_path / "run" / "checkpoint-1")  # the loss falls, and more is better
    assert farthest(weights(made.model), weights(first)) == 0


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    train = {"save_steps": 1, "save_strategy": "steps"}
    pipeline(tmp_path, train=train).run()
    path = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "layers.0.mlp" not in name}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(RunError, match=r"checkpoint-2: the checkpoint lacks 3 weights of LlamaForCausalLM"):
        pipeline(tmp_path, train={**train, "max_steps": 4}, resume=True).run()


def test_resuming_with_other_data_or_plugins_is_refused_with_the_difference(tmp_path):
    train = {"save_steps": 1, "save_strategy": "steps"}
    pipeline(tmp_path, train=train).run()
    with pytest.raises(RunError, match="the data has changed"):
        pipeline(tmp_path, data=MIXED[:6], train=train, resume=True).run()
    with pytest.raises(RunError, match="neftune"):
        pipeline(tmp_path, plugins=["neftune"], train=train, resume=True).run()


def test_data_with_nothing_to_train_on_fails_before_weights_are_read(tmp_path):
    data = [{"prompt": "a", "completion": ""}] * 3
    options = {"data": data, "model": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match="nowhere"):
        pipeline(tmp_path, **options).run()
    from transformers import AutoConfig

    directory = tmp_path / "weights"
    tiny_tokenizer().save_pretrained(directory)
    AutoConfig.for_model("llama", vocab_size=320).save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"not weights: reading them would fail")
    with pytest.raises(DataError):
        pipeline(tmp_path, data=[{"prompt": "only a prompt", "completion": ""}], model=str(directory)).run()


def test_model_options_for_a_loaded_model_are_an_error(tmp_path):
    config = {"model": {"name": "x", "options": {"attn_implementation": "eager"}}}
    with pytest.raises(ConfigError, match="the model is loaded already"):
        pipeline(tmp_path, config=config).run()


def test_a_formatting_function_a_collator_and_callbacks_can_be_given(tmp_path):
    from transformers import TrainerCallback

    seen = []

    class Counter(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(state.global_step)

    def collate(examples):
        seen.append("batch")
        width = max(len(example["input_ids"]) for example in examples)
        pad = [(example, width - len(example["input_ids"])) for example in examples]
        return {
            "input_ids": torch.tensor([list(e["input_ids"]) + [2] * n for e, n in pad]),
            "labels": torch.tensor([list(e["labels"]) + [-100] * n for e, n in pad]),
            "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for _, n in pad]),
        }

    data = Dataset.from_list([{"q": "Hello", "a": "Paris"}] * 4)
    plugins = [{"formats": {"formatting": lambda row: f"{row['q']} {row['a']}"}}]
    pipeline(tmp_path, data=data, plugins=plugins, collator=collate, callbacks=[Counter()]).run()
    assert 2 in seen
    assert "batch" in seen


def test_the_trainer_is_a_transformers_trainer():
    from transformers import Trainer

    assert issubclass(TokenLossTrainer, Trainer)


def test_a_chat_template_is_needed_for_messages_and_its_absence_is_told(tmp_path):
    with pytest.raises(ConfigError, match="chatml"):
        pipeline(tmp_path, data=tiny_conversations()).run()
    assert CHATML


class ShortOfMemory:
    """Runs out of memory, as torch says it, in a forward or backward of more rows than there is memory for."""

    def __init__(self, monkeypatch, model, rows, where):
        self.failures, self.largest = 0, 0
        forward = type(model).forward

        def limited(module, *arguments, **options):
            output = forward(module, *arguments, **options)
            number = options["input_ids"].shape[0]
            if number > rows and where == "forward":
                self.fail()
            if number > rows and where == "backward" and torch.is_grad_enabled():
                hidden = module.model.layers[0].mlp.down_proj.weight
                handle = hidden.register_hook(lambda _: (handle.remove(), self.fail()))
            self.largest = max(self.largest, number if number <= rows else 0)
            return output

        monkeypatch.setattr(type(model), "forward", limited)

    def fail(self):
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_batch_too_large_for_the_device_is_halved_with_the_same_gradients_and_told_once(
    tmp_path, monkeypatch, caplog, where
):
    train = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 2}
    train |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    whole = pipeline(tmp_path, name="whole", train=train).run()
    model = tiny_model()
    memory = ShortOfMemory(monkeypatch, model, 2, where)
    halved = pipeline(tmp_path, name="halved", model=model, train=train).run()
    assert memory.failures == 1
    assert memory.largest == 2
    assert farthest(weights(whole.model), weights(halved.model)) < 1e-6
    assert whole.metrics["train_loss"] == pytest.approx(halved.metrics["train_loss"], rel=1e-5)
    logs = [
        [json.loads(line) for line in (r.directory / "log.jsonl").read_text().splitlines()] for r in (whole, halved)
    ]
    for one, two in zip(*logs, strict=True):
        assert one.get("trained_tokens") == two.get("trained_tokens")
        assert one.get("token_accuracy") == pytest.approx(two.get("token_accuracy"))
    told = [record for record in caplog.records if "out of memory" in record.message]
    assert len(told) == 1
    assert "computing 2 at once from here on, with the same gradients" in told[0].message


def test_memory_that_runs_out_in_a_later_batch_of_the_window_leaves_no_gradient_twice(tmp_path, monkeypatch):
    train = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 1}
    train |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = pipeline(tmp_path, name="whole", train=train).run()
    calls = []
    step = TokenLossTrainer.compute_loss

    def fails_once(self, model, inputs, *arguments, **options):
        loss = step(self, model, inputs, *arguments, **options)
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 2:

            def fail(_):
                raise torch.OutOfMemoryError("CUDA out of memory.")

            loss.register_hook(fail)
        return loss

    monkeypatch.setattr(TokenLossTrainer, "compute_loss", fails_once)
    halved = pipeline(tmp_path, name="halved", train=train).run()
    assert calls == [4, 4, 2, 2, 2, 2]
    assert farthest(weights(whole.model), weights(halved.model)) < 1e-6


def test_an_evaluation_too_large_for_the_device_is_halved_with_the_same_loss(tmp_path, monkeypatch):
    train = {"max_steps": 1, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 8}
    whole = pipeline(tmp_path, name="whole", eval=MIXED, train=train).run()
    ShortOfMemory(monkeypatch, tiny_model(), 3, "forward")
    halved = pipeline(tmp_path, name="halved", eval=MIXED, train=train).run()
    assert halved.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-6)


def test_a_single_row_too_large_for_the_device_is_an_error_that_names_its_length(tmp_path, monkeypatch):
    ShortOfMemory(monkeypatch, tiny_model(), 0, "forward")
    with pytest.raises(RunError, match=r"out of memory with a single row of \d+ tokens.*data.max_length"):
        pipeline(tmp_path, train={"per_device_train_batch_size": 4}).run()


def test_a_step_waits_for_the_device_no_more_often_than_the_models_own_forward(tmp_path, monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        """Counts what makes the host wait for a GPU: a number read, or a result whose size depends on values."""

        def __init__(self):
            super().__init__()
            self.number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    found, step = [], TokenLossTrainer.training_step

    def watched(self, model, inputs, *arguments):
        with Waits() as alone, torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        with Waits() as whole:
            loss = step(self, model, inputs, *arguments)
        found.append((whole.number, alone.number))
        return loss

    monkeypatch.setattr(TokenLossTrainer, "training_step", watched)
    pipeline(tmp_path, plugins=["loss:entropy=true"], train={"max_steps": 4}).run()
    for whole, alone in found[1:]:  # in the first, the head looks at the model
        assert whole <= alone


@pytest.mark.parametrize("plugins", [[], ["peft"]])
def test_a_run_in_mixed_precision_uses_the_loss_head_and_leaves_the_model_plain(tmp_path, caplog, plugins):
    train = {"max_steps": 4, "learning_rate": 1e-2}
    options = {"eval": MIXED, "plugins": plugins}
    exact = pipeline(tmp_path, name="exact", model=tiny_model("gemma2"), train=train, **options).run()
    mixed = pipeline(tmp_path, name="mixed", model=tiny_model("gemma2"), train={**train, "bf16": True}, **options).run()
    assert "the logits of every position" not in caplog.text
    assert mixed.metrics["eval_loss"] != exact.metrics["eval_loss"]
    assert mixed.metrics["eval_loss"] == pytest.approx(exact.metrics["eval_loss"], rel=0.01)
    causal = mixed.model.get_base_model() if plugins else mixed.model
    assert not {"forward", "_original_forward"} & set(vars(causal))
    assert "forward" not in vars(causal.lm_head)


def test_a_resumed_run_goes_on_counting_trained_tokens(tmp_path):
    train = {"save_steps": 2, "save_strategy": "steps", "logging_steps": 1}
    whole = pipeline(tmp_path, name="whole", train={**train, "max_steps": 4}).run()
    pipeline(tmp_path, name="cut", train={**train, "max_steps": 2}).run()
    rest = pipeline(tmp_path, name="cut", train={**train, "max_steps": 4}, resume=True).run()
    logs = [
        [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()] for run in (whole, rest)
    ]
    counted = [[entry["trained_tokens"] for entry in log if "trained_tokens" in entry] for log in logs]
    assert counted[0] == counted[1]


def test_evaluations_and_checkpoints_are_not_in_the_rate(monkeypatch):
    import time
    from types import SimpleNamespace

    from sftkit.training.measures import Measures

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda sums, reduction: sums)
    measures = Measures()
    measures.begin_batch()
    now[0] += 2.0
    measures.add(100, 50, {"token_accuracy": torch.ones(50)})
    with measures.paused():
        now[0] += 30.0
    told = measures.told(accelerator, trained_before=7)
    assert told == {"tokens_per_second": 50.0, "trained_tokens": 57, "token_accuracy": 1.0}


def test_only_the_proportions_of_weights_matter_however_small_they_are(tmp_path):
    train = {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0}
    found = []
    for name, weight in (("small", 1e-13), ("half", 0.5)):
        data = [{**row, "weight": weight} for row in MIXED]
        found.append(pipeline(tmp_path, name=name, data=data, train=train).run())
    assert found[0].metrics["train_loss"] == pytest.approx(found[1].metrics["train_loss"], rel=1e-4)
    assert farthest(weights(found[0].model), weights(found[1].model)) < 1e-5
