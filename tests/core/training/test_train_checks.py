# ruff: noqa: E501 (a case is a line)
"""What a training would refuse or ignore is reported by check and by run, before data is read."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from sftkit.errors import ConfigError, DataError, RunError
from sftkit.run.pipeline import Pipeline

MISSING = "nowhere.jsonl"  # reading data would be a DataError
EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}
STEPS = {**EVALUATING, "save_steps": 2}
BEST = {**STEPS, "load_best_model_at_end": True}
ONE = {"eval": MISSING}
TWO = {"eval": {"a": MISSING, "b": MISSING}}


class Silent(TrainerCallback):
    """A callback of the user, which may compute metrics."""


def pipeline(tmp_path, train, **options):
    train = {"use_cpu": True, "max_steps": 4, "output_dir": str(tmp_path / "run"), **train}
    return Pipeline(model="demo", data=MISSING, train=train, **options)


def refusal(tmp_path, train, **options):
    """The problems by key; check and run agree on them."""
    problems = pipeline(tmp_path, train, **options).check()
    with pytest.raises(ConfigError) as raised:
        pipeline(tmp_path, train, **options).run()
    assert raised.value.problems == problems
    assert all(problem.what and problem.fix for problem in problems)
    assert not (tmp_path / "run").exists()
    return {problem.where: f"{problem.what} -> {problem.fix}" for problem in problems}


def accepted(tmp_path, train, **options):
    """Whether check finds nothing, and run reads the data."""
    with pytest.raises(DataError, match="no such file"):
        pipeline(tmp_path, train, **options).run()
    return pipeline(tmp_path, train, **options).check() == ()


# name: section train, arguments of Pipeline, the field that is named, words of the problem
REFUSED = {
    "evaluation without data": (STEPS, {}, "eval_strategy", "no evaluation data -> set data.eval"),
    "evaluation at the start without data": ({"eval_on_start": True}, {}, "eval_on_start", "no evaluation data"),
    "nothing to do": ({"max_steps": 0}, {}, "max_steps", "nothing to train and nothing to evaluate"),
    "no epoch, nothing to do": ({"max_steps": -1, "num_train_epochs": 0}, {}, "num_train_epochs", "nothing to train"),
    "steps of saves at each epoch": (
        {"save_strategy": "epoch", "save_steps": 5},
        {},
        "save_steps",
        "does nothing with train.save_strategy=epoch",
    ),
    "steps of a log at each epoch": (
        {"logging_strategy": "epoch", "logging_steps": 5},
        {},
        "logging_steps",
        "does nothing with train.logging_strategy=epoch",
    ),
    "steps without a strategy": ({"eval_steps": 5}, ONE, "eval_steps", "does nothing without train.eval_strategy"),
    "best model without evaluation": ({"load_best_model_at_end": True}, ONE, "load_best_model_at_end", "evaluations"),
    "best model, other strategies": ({**BEST, "save_strategy": "epoch"}, ONE, "load_best_model_at_end", "save_strategy=steps"),
    "best model, other steps": ({**BEST, "save_steps": 3}, ONE, "save_steps", "multiple"),
    "best model of several sets": (BEST, TWO, "load_best_model_at_end", "eval_a_loss, eval_b_loss"),
    "metric of no set": ({**BEST, "metric_for_best_model": "eval_c_loss"}, TWO, "metric_for_best_model", "eval_a_loss"),
    "metric of no measure": ({**BEST, "metric_for_best_model": "a_bleu"}, TWO, "metric_for_best_model", "nothing computes"),
    "unknown metric": ({**BEST, "metric_for_best_model": "acuracy"}, ONE, "metric_for_best_model", "eval_token_accuracy"),
    "saving the best without a metric": ({**STEPS, "save_strategy": "best"}, ONE, "save_strategy", "metric_for_best"),
    "saving the best without evaluation": (
        {"save_strategy": "best", "metric_for_best_model": "loss"}, ONE, "save_strategy", "eval_strategy",
    ),
    "early stopping without a metric": (
        STEPS, {**ONE, "callbacks": [EarlyStoppingCallback()]}, "metric_for_best_model", "metric_for_best_model=eval_loss",
    ),
    "early stopping without evaluation": (
        {"metric_for_best_model": "loss"}, {**ONE, "callbacks": [EarlyStoppingCallback]}, "eval_strategy", "evaluations",
    ),
    "metric that is not computed": (
        {**BEST, "metric_for_best_model": "exact_match"}, {**ONE, "evaluate": {"metrics": ["rouge"]}},
        "metric_for_best_model", "nothing computes the metric eval_exact_match",
    ),
    "plateau without evaluation": ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {}, "lr_scheduler_type", "evaluations"),
    "integration that is not there": ({"report_to": "neptune"}, {}, "report_to", "pip install neptune"),
    "unknown integration": ({"report_to": ["wandbb"]}, {}, "report_to", "no integration 'wandbb'"),
    "null integration": ({"report_to": None}, {}, "report_to", "use none"),
    "galore": ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, {}, "optim", "galore_torch"),
    "apollo": ({"optim": "apollo_adamw", "optim_target_modules": ["q_proj"]}, {}, "optim", "apollo_torch"),
    "lomo": ({"optim": "lomo"}, {}, "optim", "lomo"),
    "xla": ({"optim": "adamw_torch_xla"}, {}, "optim", "torch_xla"),
    "optimizer without targets": ({"optim_target_modules": ["q_proj"]}, {}, "optim_target_modules", "no target modules"),
    "option of no optimizer": ({"optim": "sgd", "optim_args": "momentun=1"}, {}, "optim_args", "no option 'momentun'"),
    "options of another form": ({"optim": "sgd", "optim_args": "momentum 1"}, {}, "optim_args", "name=value"),
    "value of an option": ({"optim": "sgd", "optim_args": "momentum=much"}, {}, "optim_args", "much"),
    "fraction of a warm-up": (
        {"optim": "schedule_free_adamw", "warmup_steps": 0.1}, {}, "warmup_steps", "takes a number of steps",
    ),
    "nccl on a CPU": ({"ddp_backend": "nccl"}, {}, "ddp_backend", "gloo"),
    "options of the scheduler": ({"lr_scheduler_kwargs": {"cycles": 2}}, {}, "lr_scheduler_kwargs", "cycles"),
    "options of a constant": (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, {}, "lr_scheduler_kwargs", "no arguments",
    ),
    "scheduler that lacks one": ({"lr_scheduler_type": "warmup_stable_decay"}, {}, "lr_scheduler_type", "num_decay_steps"),
    "schedule that fails later": (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": -1}}, {}, "lr_scheduler_kwargs", "are: lr_end, power",
    ),
    "schedule that falls below 0": (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": -1}}, {}, "lr_scheduler_kwargs", "gives -",
    ),
    "scheduler options as text": ({"lr_scheduler_kwargs": "cycles"}, {}, "lr_scheduler_kwargs", "mapping"),
    "half precision on a CPU": ({"fp16": True}, {}, "fp16", "CPU"),
    "two precisions": ({"fp16": True, "bf16": True}, {}, "fp16", "keep one of them"),
    "tf32 on a CPU": ({"tf32": True}, {}, "tf32", "compute capability"),
    "evaluation in another precision": ({"bf16_full_eval": True}, {}, "bf16_full_eval", "precision of the training"),
    "option of checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"reentrant": False}}, {},
        "gradient_checkpointing_kwargs", "no option 'reentrant'",
    ),
    "checkpointing without its switch": (
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}, "gradient_checkpointing_kwargs", "does nothing",
    ),
    "back end of the compiler": ({"torch_compile_backend": "inductr"}, {}, "torch_compile_backend", "INDUCTR"),
    "loader without processes": ({"dataloader_prefetch_factor": 2}, {}, "dataloader_prefetch_factor", "num_workers"),
    "persistent loader": (
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 0}, {}, "dataloader_persistent_workers", "num_workers",
    ),
    "option of accelerate": ({"accelerator_config": {"split": True}}, {}, "accelerator_config", "split"),
    "accumulation in accelerate": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, {}, "accelerator_config", "accumulation_steps",
    ),
    "rows shared by accelerate": ({"accelerator_config": {"even_batches": False}}, {}, "accelerator_config", "remove"),
    "file of accelerate": ({"accelerator_config": "no.json"}, {}, "accelerator_config", "no.json"),
    "metrics without a function": ({"batch_eval_metrics": True}, ONE, "batch_eval_metrics", "does nothing"),
    "metrics without predictions": (
        {"prediction_loss_only": True}, {**ONE, "compute_metrics": print}, "prediction_loss_only", "never be called",
    ),
    "hub without push": ({"hub_model_id": "me/model"}, {}, "hub_model_id", "train.push_to_hub"),
    "push while offline": ({"push_to_hub": True}, {}, "push_to_hub", "HF_HUB_OFFLINE"),
    "level of the log": ({"log_level": "loud"}, {}, "log_level", "warning"),
    "counted tokens": ({"include_num_input_tokens_seen": "some"}, {}, "include_num_input_tokens_seen", "non_padding"),
    "order of a stream": (
        {"train_sampling_strategy": "group_by_length"}, {"config": {"data": {"streaming": True}}},
        "train_sampling_strategy", "its own order",
    ),
    "column of lengths": ({"length_column_name": "length"}, {}, "length_column_name", "number of its tokens"),
    "near name": ({"optim": "adamw_8bitt"}, {}, "optim", "there is no 'adamw_8bitt' -> did you mean 'adamw_8bit'?"),
    "order of the rows": ({"train_sampling_strategy": "shuffled"}, {}, "train_sampling_strategy", "group_by_length"),
    "name of the directory": ({"output_dir": "a" * 300}, {}, repr("a" * 300), "choose another"),
}  # fmt: skip
OUT_OF_RANGE = {
    "per_device_train_batch_size": [0, -1, 10**12],
    "per_device_eval_batch_size": [0],
    "gradient_accumulation_steps": [0, -2],
    "learning_rate": [0, -1e-5, float("nan"), float("inf"), "nan"],
    "seed": [-1, 2**32],
    "data_seed": [-1],
    "num_train_epochs": [-1, float("inf")],
    "max_steps": [-2],
    "warmup_steps": [-1, 1.5],
    "weight_decay": [-0.1],
    "adam_beta1": [1, -0.1],
    "adam_beta2": [1.5],
    "adam_epsilon": [0],
    "max_grad_norm": [-1],
    "logging_steps": [0, -1, 2.5],
    "save_steps": [0, -1, 2.5],
    "eval_steps": [0, -1, 2.5],
    "eval_delay": [-1],
    "save_total_limit": [0, -1],
    "torch_empty_cache_steps": [0],
    "eval_accumulation_steps": [0],
    "dataloader_num_workers": [-1, 10**9],
    "dataloader_prefetch_factor": [0],
    "ddp_bucket_cap_mb": [0],
}
ACCEPTED = {
    "best model of one set": (BEST, ONE),
    "best model by accuracy": ({**BEST, "metric_for_best_model": "token_accuracy"}, ONE),
    "best model by one of several sets": ({**BEST, "metric_for_best_model": "eval_a_loss"}, TWO),
    "saving the best": ({**EVALUATING, "save_strategy": "best", "metric_for_best_model": "eval_loss"}, ONE),
    "early stopping": ({**STEPS, "metric_for_best_model": "loss"}, {**ONE, "callbacks": [EarlyStoppingCallback()]}),
    "a metric of the user's function": (
        {**BEST, "metric_for_best_model": "bleu"}, {**ONE, "compute_metrics": lambda _: {"bleu": 1.0}},
    ),
    "a metric of the user's callback": ({**BEST, "metric_for_best_model": "bleu"}, {**ONE, "callbacks": [Silent()]}),
    "a metric of a plugin's loss": ({**BEST, "metric_for_best_model": "entropy"}, {**ONE, "plugins": ["loss:entropy=true"]}),
    "steps that an override unsets": ({"save_strategy": "no", "save_steps": None}, {}),
    "switched off": ({"eval_strategy": "no", "eval_delay": 5, "push_to_hub": False, "hub_model_id": "me/it"}, ONE),
    "evaluation only": ({"max_steps": 0}, ONE),
    "bitsandbytes": ({"optim": "adamw_bnb_8bit"}, {}),
    "options of an optimizer": ({"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}, {}),
    "an optimizer with a mode for training": ({"optim": "schedule_free_adamw", "warmup_steps": 2}, {}),
    "schedule": ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, {}),
    "schedule as JSON": ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycles": 1}'}, {}),
    "checkpointing": ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"use_reentrant": false}'}, {}),
    "gloo in one process": ({"ddp_backend": "gloo"}, {}),
    "fraction of the steps": ({**STEPS, "eval_steps": 0.5, "warmup_steps": 0.1}, ONE),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_check_and_run_refuse_it_with_its_field_and_a_fix(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    train, options, field, words = REFUSED[case]
    problems = refusal(tmp_path, train, **options)
    where = field if field.startswith("'") else f"train.{field}"
    assert words in next(text for place, text in problems.items() if place.endswith(where)), problems


@pytest.mark.parametrize("field", OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_with_the_range(tmp_path, field):
    for value in OUT_OF_RANGE[field]:
        problems = pipeline(tmp_path, {**STEPS, field: value}, **ONE).check()
        (found,) = [problem for problem in problems if problem.where.endswith(field)]
        assert "is out of range" in found.what
        assert found.fix.startswith("use ")


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_fits_together_is_accepted(tmp_path, case):
    train, options = ACCEPTED[case]
    assert accepted(tmp_path, train, **options)


def test_all_problems_of_a_file_are_reported_at_once_with_their_lines(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(
        "model: demo\ndata: nowhere.jsonl\ntrain:\n  eval_strategy: epoch\n  load_best_model_at_end: true\n"
        "  save_strategy: steps\n  hub_model_id: me/it\n"
    )
    problems = [str(problem) for problem in Pipeline(config=path).check()]
    assert [text.partition(": ")[0].removeprefix(str(path)) for text in problems] == [
        ":4, train.eval_strategy",
        ":5, train.load_best_model_at_end",
        ":7, train.hub_model_id",
    ]


def test_the_command_exits_with_2_and_without_a_traceback(in_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    refused = ["train.eval_strategy=steps", "-m", "demo", "-d", "demo"]
    code, printed = in_process("run", *refused)
    assert code == 2
    assert printed.endswith(
        "error: command line, train.eval_strategy: there is no evaluation data -> "
        "set data.eval, for instance data.eval=0.05, or train.eval_strategy=no\n"
    )
    code, printed = in_process("check", *refused)
    assert code == 2
    assert "there is no evaluation data" in printed
    assert not list(tmp_path.iterdir())


def test_an_early_stopping_callback_of_a_plugin_without_a_metric_is_refused(tmp_path, make_run, monkeypatch):
    from sftkit.api import Plugin, dataclass, hookimpl

    @dataclass(frozen=True, kw_only=True)
    class Stops(Plugin):
        """Stops early."""

        @hookimpl
        def trainer_callbacks(self):
            return [EarlyStoppingCallback()]

    monkeypatch.setitem(sys.modules, "stops", types.SimpleNamespace(Stops=Stops))
    with pytest.raises(ConfigError, match="EarlyStoppingCallback needs a metric"):
        make_run(plugins=[Stops()]).run()


def test_a_metric_that_a_callback_does_not_compute_after_all_is_an_error_before_the_first_step(make_run, held_out):
    steps = []

    class Counts(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            steps.append(state.global_step)

    train = {**BEST, "eval_steps": 1, "save_steps": 1, "metric_for_best_model": "bleu"}
    with pytest.raises(RunError, match=r"nothing computes the metric eval_bleu -> use one of .*eval_token_accuracy"):
        make_run(eval=held_out, train=train, callbacks=[Silent(), Counts()]).run()
    assert not steps


@pytest.mark.slow
def test_checking_changes_neither_the_environment_nor_the_random_state(tmp_path):
    code = f"""
import os, random, torch, numpy
from sftkit import Pipeline
from accelerate.state import AcceleratorState, PartialState
train = {{"full_determinism": True, "seed": 7, "log_level": "debug", "torch_compile_mode": "default"}}
os.environ["WORLD_SIZE"] = "2"
import transformers; transformers.set_seed(1)
state = lambda: (dict(os.environ), random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
    transformers.logging.get_verbosity(), torch.are_deterministic_algorithms_enabled(), dict(PartialState._shared_state))
before = state()
assert Pipeline(model="demo", data="demo", train={{**train, "output_dir": {str(tmp_path / "run")!r}}}).check() == ()
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    assert not (tmp_path / "run").exists()
