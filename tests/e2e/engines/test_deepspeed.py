"""Two processes among which DeepSpeed divides optimizer, gradients and weights train, save and resume as one does."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.testing.processes import free_port, start_group, warm_processes

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow  # its start takes half a minute

MODEL = "model.safetensors"
BATCH = "train.per_device_train_batch_size=4"

#: A plugin that writes how much of the weights each process has as soon as they are loaded, and in the training.
PROBE = """
import json
import os
from dataclasses import dataclass

from transformers import TrainerCallback

from sftkit.api import Plugin, hookimpl


def share(model):
    weights = list(model.parameters())
    parts = [weight.ds_tensor.numel() if hasattr(weight, "ds_tensor") else weight.numel() for weight in weights]
    whole = [weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel() for weight in weights]
    return sum(parts) / sum(whole), sum(weight.numel() for weight in weights)


@dataclass(frozen=True)
class Probe(Plugin):
    where: str

    @hookimpl
    def patch_kernels(self, model):
        layers = model.model.layers
        with open(f"{self.where}-loaded-{os.environ['RANK']}.json", "w") as file:
            json.dump(share(layers), file)

    @hookimpl
    def trainer_callbacks(self):
        return [Trained(self.where)]


class Trained(TrainerCallback):
    def __init__(self, where):
        self.where = where

    def on_step_end(self, args, state, control, model, **_):
        with open(f"{self.where}-trained-{os.environ['RANK']}.json", "w") as file:
            json.dump(share(model), file)
"""
BASE = {
    "model": {"name": "model"},
    "data": {"train": "rows.jsonl", "max_length": 64},
    "train": {
        **{"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    },
}
#: New tokens on further rows of the embeddings; an adapter, with packed rows.
FURTHER = {
    "chat": ["-p", "chatml", "data.train=chats.jsonl"],
    "lora": ["-p", "packing", "data.max_length=128", "-p", "peft:r=4"],
}
STAGES = pytest.mark.parametrize("stage", [2, 3])
KINDS = pytest.mark.parametrize("kind", FURTHER)


def zero(stage: int) -> str:
    """The plugin with a configuration in which no weight is too small to be partitioned, and no model is asked for."""
    section = {"stage": stage, "stage3_param_persistence_threshold": 0}
    section["stage3_gather_16bit_weights_on_model_save"] = False
    return f"plugins.deepspeed={json.dumps({'config': {'zero_optimization': section}})}"


def log_of(directory: Path, *names: str) -> list[float]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line for name in names]


def prepared(place: Path) -> Path:
    """A directory with a model, data and the configuration."""
    tiny_model("llama").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    rows = [{"prompt": f"{n} is ", "completion": f"number {n} " * (1 + n % 4)} for n in range(32)]
    turns = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "so"}] for row in rows]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "chats.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    (place / "base.yaml").write_text(yaml.safe_dump(BASE))
    (place / "probe.py").write_text(PROBE)
    return place


def session(place: Path, calls: dict[str, list[str]], variables: dict[str, str]) -> None:
    """Make runs one after another in this process of a group, since DeepSpeed starts slowly."""
    os.chdir(place)
    os.environ.update(variables)
    with (place / f"printed-{variables['RANK']}.txt").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    import torch.distributed as dist

    from sftkit.cli import main

    end, dist.destroy_process_group = dist.destroy_process_group, lambda *_: None
    for name, arguments in calls.items():
        if name.endswith("-again"):
            if dist.get_rank() == 0:
                copy_of_interrupted(Path(name.removesuffix("-again")), Path(name))
            dist.barrier()
        sys.argv = ["sftkit", "run", "base.yaml", "-o", name, *arguments]
        try:
            main()
        except SystemExit as error:
            if error.code:
                raise
    end()


def copy_of_interrupted(run: Path, copy: Path) -> None:
    """A copy of a run as if it had ended after its first checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoint-4")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))


def together(place: Path, calls: dict[str, list[str]]) -> Path:
    """Make runs in two processes."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in ("0", "1"):
        variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        started.append(warm_processes().Process(target=session, args=(place, calls, variables)))
        started[-1].start()
    for process in started:
        process.join(600)
        process.kill()
    codes = [process.exitcode for process in started]
    assert codes == [0, 0], "".join((place / f"printed-{rank}.txt").read_text()[-3000:] for rank in (0, 1))
    return place


@pytest.fixture
def alone(in_process, monkeypatch, tmp_path):
    """Makes a run of one process without DeepSpeed, on the same batches; returns its directory."""

    def run(place: Path, *options: str) -> Path:
        monkeypatch.chdir(place)
        arguments = ["run", "base.yaml", *options, BATCH, "-o", tmp_path / "alone"]
        code, output = in_process(*arguments)
        assert code == 0, output
        return tmp_path / "alone"

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with runs of two processes, each also resumed from its first checkpoint."""
    calls: dict[str, list[str]] = {}
    for stage in (2, 3):
        calls[f"zero{stage}"] = [zero(stage), "-p", f"probe:Probe:where=zero{stage}"]
        calls[f"zero{stage}-again"] = [*calls[f"zero{stage}"], "--resume"]
    return together(prepared(tmp_path_factory.mktemp("zero")), calls)


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """A directory with further runs of two processes with stage 3."""
    place = prepared(tmp_path_factory.mktemp("further"))
    return together(place, {kind: [zero(3), *options] for kind, options in FURTHER.items()})


def require_equal_logs(found: Path, expected: Path) -> None:
    assert len(log_of(found, "loss")) == 4
    for name in ("loss", "grad_norm"):
        assert log_of(found, name) == pytest.approx(log_of(expected, name), rel=1e-4), name


def test_losses_equal_one_process(runs, alone):
    """And gradient norms: without clipping by train.max_grad_norm, they would differ by 6 % from the third step on."""
    one = alone(runs)
    for stage in (2, 3):
        require_equal_logs(runs / f"zero{stage}", one)


@pytest.mark.slow
@KINDS
def test_losses_equal_one_process_with(further, alone, kind):
    require_equal_logs(further / kind, alone(further, *FURTHER[kind]))


@STAGES
def test_each_process_has_its_part_of_the_weights_from_the_moment_they_are_read(runs, stage):
    for rank in (0, 1):
        files = [runs / f"zero{stage}-{at}-{rank}.json" for at in ("loaded", "trained")]
        loaded, trained = (json.loads(file.read_text()) for file in files)
        share = 1 if stage == 2 else 0.5
        assert (loaded[0], trained[0]) == pytest.approx((share, share), abs=0.01)
        assert (loaded[1] == 0) == (stage == 3)


def require_equal_weights(found: Path, expected: Path) -> None:
    one, other = load_file(found), load_file(expected)
    assert one.keys() == other.keys()
    for name in one:  # Adam divides rounding errors where gradients are nearly 0
        assert one[name].allclose(other[name], atol=2e-3), name


@STAGES
def test_the_saved_model_loads_in_transformers(runs, alone, stage):
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(runs / f"zero{stage}", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    require_equal_weights(runs / f"zero{stage}" / MODEL, alone(runs) / MODEL)


@pytest.mark.slow
@KINDS
def test_the_saved_model_equals_that_of_one_process_with(further, alone, kind):
    file = "adapter_model.safetensors" if kind == "lora" else MODEL
    require_equal_weights(further / kind / file, alone(further, *FURTHER[kind]) / file)


@STAGES
def test_resume_is_exact(runs, stage):
    through, resumed = (load_file(runs / f"zero{stage}{end}" / MODEL) for end in ("", "-again"))
    assert all(through[name].equal(resumed[name]) for name in through)
    assert log_of(runs / f"zero{stage}-again", "loss")[-2:] == log_of(runs / f"zero{stage}", "loss")[-2:]


@STAGES
def test_a_checkpoint_has_the_parts_of_the_weights_and_no_whole_model(runs, stage):
    files = {path.name for path in (runs / f"zero{stage}" / "checkpoint-2").rglob("*")}
    assert MODEL not in files
    assert len([name for name in files if name.endswith("optim_states.pt")]) == 2


@STAGES
def test_resume_with_another_number_of_processes(runs, in_process, monkeypatch, tmp_path, stage):
    """It is refused: DeepSpeed reshards only what a program of its own has converted, which reads pickled objects."""
    monkeypatch.chdir(runs)
    shutil.copytree(runs / f"zero{stage}", tmp_path / "run")
    options = [zero(stage), "-p", f"probe:Probe:where=zero{stage}"]
    code, output = in_process("run", "base.yaml", "-o", tmp_path / "run", *options, "--resume")
    assert code == 2, output
    assert "2 processes -> 1" in output


@pytest.mark.slow
@STAGES
def test_a_failing_process_ends_the_run(tmp_path, stage):
    place = prepared(tmp_path)
    shutil.copy(Path(__file__).parents[2] / "faults" / "poison.py", place)
    arguments = ["run", "base.yaml", "-o", "run", zero(stage), "-p", "poison:Fault:kind=raise,process=1"]
    with start_group(warm_processes(), arguments, cwd=place, printed=tmp_path / "printed") as group:
        codes = group.wait()
        assert codes == [1, 1], group.outputs
        assert "".join(group.outputs).count("ValueError: a fault of a plugin") == 1
    assert json.loads((place / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_one_process_trains_with_weights_and_optimizer_on_the_cpu(tmp_path, alone, cli):
    place = prepared(tmp_path)
    done = cli("run", "base.yaml", "-p", "deepspeed:stage=3,offload=all", "-o", "off", BATCH, cwd=place)
    assert "ZeRO stage 3 in 1 process" in done.stdout + done.stderr
    require_equal_logs(place / "off", alone(place))
