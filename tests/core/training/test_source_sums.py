"""The sources of the data sum to the loss and to the tokens of each log entry, and of the whole run."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from sftkit import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.training.measures import Measures, read_sums

NAMES = ("a", "b", "c")
STEPS = 5


def row(name, number):
    return {"prompt": "Q: ", "completion": f"{name} says {'one more ' * (number % 5)}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file for each source; rows of five lengths."""
    directory = tmp_path_factory.mktemp("sums")
    for at, name in enumerate(NAMES):
        rows = [row(name, number) for number in range(9 + 4 * at)]
        weighted = [{**each, "weight": 0.5 + number % 3} for number, each in enumerate(rows)]
        for folder, some in (("plain", rows), ("weighted", weighted)):
            (directory / folder).mkdir(exist_ok=True)
            (directory / folder / f"{name}.jsonl").write_text(
                "".join(json.dumps(each) + "\n" for each in some), encoding="utf-8"
            )
    return directory


def run_of(files, out, *, plugins=(), data=None, weighted=False, model="llama", options=None, resume=False, **train):
    """A run of five steps of two batches of four rows."""
    mix = {str(files / ("weighted" if weighted else "plain") / f"{name}.jsonl"): 1 for name in NAMES}
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_cpu": True}
    settings |= {"logging_steps": 1, "learning_rate": 1e-3, "seed": 1, "output_dir": str(out), **train}
    data = {"max_length": 48, "mix": mix, "mix_until": "all", **(data or {})}
    made = {"tokenizer": tiny_tokenizer(), "plugins": ["no:checks", *plugins], "train": settings, "resume": resume}
    return Pipeline(model=tiny_model(model, **(options or {})), data=data, **made)


def log_of(directory, key="loss"):
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry for entry in entries if key in entry}  # the later one of a step that was logged twice


def since_last(log, kind="trained_tokens"):
    """For each logged step, what each source adds to ``kind``."""
    found, before = {}, {}
    for step, entry in sorted(log.items()):
        now = {name: entry.get(f"{kind}_{name}", 0) for name in NAMES}
        found[step] = {name: value - before.get(name, 0) for name, value in now.items()}
        before = now
    return found


def summed(entry, weights):
    """The loss of an entry from those of its sources."""
    losses = {name: entry[f"loss_{name}"] for name, weight in weights.items() if weight}
    return sum(losses[name] * weights[name] for name in losses) / sum(weights.values())


CASES = {
    "padded": {},
    "packed": {"plugins": ["packing"]},
    "padding-free": {"plugins": ["flash_attn"]},
    "dft": {"plugins": ["loss:type=dft"]},
    "smoothed": {"plugins": ["loss:label_smoothing=0.1", "packing"], "logging_steps": 2},
    "weights": {"weighted": True, "plugins": ["packing"]},
    "stream": {"data": {"streaming": True, "window": 8, "mix_until": "first"}, "plugins": ["packing"]},
    "weighted stream": {"data": {"streaming": True, "window": 8, "mix_until": "first"}, "weighted": True},
}


SLOW = ("padded", "smoothed", "weighted stream")


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_the_sources_sum_to_the_loss_and_the_tokens(tmp_path, files, case):
    run_of(files, tmp_path / "run", **CASES[case]).run()
    log = log_of(tmp_path / "run")
    weighted = "weighted" in CASES[case]
    weights = since_last(log, "trained_weight" if weighted else "trained_tokens")
    for step, entry in log.items():
        assert summed(entry, weights[step]) == pytest.approx(entry["loss"], rel=1e-6), step
        assert sum(entry[f"trained_tokens_{name}"] for name in NAMES) == entry["trained_tokens"]
        assert any(name.startswith("trained_weight") for name in entry) == weighted
    [last] = log_of(tmp_path / "run", "train_loss").values()
    if CASES[case].get("logging_steps", 1) == 1:  # else a mean over tokens is not one over steps
        assert sum(entry["loss"] for entry in log.values()) / STEPS == pytest.approx(last["train_loss"], rel=1e-6)
    assert sum(last[f"trained_tokens_{name}"] for name in NAMES) == last["trained_tokens"]
    trained = json.loads((tmp_path / "run" / "manifest.json").read_text())["trained"]
    assert trained["tokens"] == last["trained_tokens"]
    assert trained["sources"].keys() == set(NAMES)
    for name, of in trained["sources"].items():
        losses = [entry[f"loss_{name}"] for entry in log.values() if f"loss_{name}" in entry]
        assert of == {"tokens": last[f"trained_tokens_{name}"], "loss": losses[-1]}


def test_an_entry_of_several_steps_is_the_mean_over_their_tokens(tmp_path, files):
    run_of(files, tmp_path / "each").run()
    run_of(files, tmp_path / "some", logging_steps=3).run()
    each, some = (log_of(tmp_path / name) for name in ("each", "some"))
    tokens = {
        step: each[step]["trained_tokens"] - each.get(step - 1, {"trained_tokens": 0})["trained_tokens"]
        for step in each
    }
    for name in ("loss", *(f"loss_{source}" for source in NAMES)):
        of = {step: tokens[step] if name == "loss" else since_last(each)[step][name[-1]] for step in (1, 2, 3)}
        expected = sum(each[step].get(name, 0) * of[step] for step in of) / sum(of.values())
        assert some[3][name] == pytest.approx(expected, rel=1e-6), name
    assert "trained_tokens_a" not in some.get(5, {})  # the last steps were not logged, but count
    assert log_of(tmp_path / "some", "train_loss")[5]["trained_tokens"] == each[5]["trained_tokens"]


def test_the_auxiliary_loss_of_a_mixture_of_experts_is_part_of_the_loss_alone(tmp_path, files):
    options = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    run_of(files, tmp_path / "run", model="mixtral", options=options, logging_steps=1).run()
    log = log_of(tmp_path / "run")
    for step, entry in log.items():
        assert summed(entry, since_last(log)[step]) < entry["loss"]
    [last] = log_of(tmp_path / "run", "train_loss").values()
    assert sum(entry["loss"] for entry in log.values()) / STEPS == pytest.approx(last["train_loss"], rel=1e-6)


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["rows", "stream"])
def test_a_run_resumed_between_two_entries_logs_what_an_uninterrupted_one_does(tmp_path, files, streaming):
    data = {"streaming": True, "window": 8, "mix_until": "first"} if streaming else {}
    options = {
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "data": data,
        "lr_scheduler_type": "constant",
    }
    run_of(files, tmp_path / "whole", **options).run()
    run_of(files, tmp_path / "part", **options, max_steps=2).run()
    assert (tmp_path / "part" / "checkpoint-2" / "measures_0.json").exists()
    run_of(files, tmp_path / "part", resume=True, **options).run()
    whole, part = (log_of(tmp_path / name) for name in ("whole", "part"))
    names = [name for name in whole[3] if name.startswith(("loss", "trained_", "token_"))]
    assert len(names) == 9
    assert [part[3][name] for name in names] == [whole[3][name] for name in names]
    last = [log_of(tmp_path / name, "train_loss")[5] for name in ("whole", "part")]
    assert len({json.dumps({name: each[name] for name in each if "trained" in name}) for each in last}) == 1


def test_one_source_adds_no_values(tmp_path, files):
    run_of(files, tmp_path / "run", data={"mix": {str(files / "plain" / "a.jsonl"): 1}}, max_steps=1).run()
    assert not [name for name in log_of(tmp_path / "run")[1] if name.startswith(("loss_", "trained_tokens_"))]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["trained"]["sources"] == {}


def test_the_sources_of_an_evaluation_sum_to_its_loss(tmp_path, files):
    run_of(files, tmp_path / "run", data={"eval": 0.3}, max_steps=1).run()
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["eval"]["sources"]
    [entry] = log_of(tmp_path / "run", "eval_loss").values()
    tokens = {name: each["trained tokens"] for name, each in counts.items()}
    total = sum(entry[f"eval_loss_{name}"] * number for name, number in tokens.items())
    assert total / sum(tokens.values()) == pytest.approx(entry["eval_loss"], rel=1e-6)


def one(processes=1):
    return SimpleNamespace(device=torch.device("cpu"), num_processes=processes, reduce=lambda sums, reduction: sums)


def filled(sources=NAMES):
    measures = Measures(sources)
    measures.begin_batch()
    losses = torch.tensor([1.0, 2.0, 3.0])
    measures.add(5, 3, losses.sum(), 3, {})
    measures.add_sources(losses, None, torch.tensor([0, 1, 1]))
    return measures


@pytest.mark.parametrize(("processes", "sharing"), [(1, 1), (4, 1), (4, 2)])
def test_other_processes_continue_the_sums_of_all(tmp_path, processes, sharing):
    for process in range(2):
        filled().write(str(tmp_path), process, {"processes": 2, "sharing": 1})
    settings = {"processes": processes, "sharing": sharing}
    read = [read_sums(str(tmp_path), process, settings, torch.device("cpu")) for process in range(processes)]
    continued = Measures(NAMES, read[0])
    continued.begin_batch()
    continued.add(0, 0, torch.zeros(()), 0, {})
    entry = continued.log_entry(one(), [], sharing)
    assert (entry["trained_tokens"], entry["loss"], entry["loss_b"], entry["trained_tokens_b"]) == (6, 2.0, 2.5, 4)
    assert not any(read[1:])


def test_tokens_of_an_unknown_source_are_counted_in_no_source(caplog):
    measures = filled()
    measures.add(5, 3, torch.tensor(6.0), 3, {})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            measures.add_sources(torch.ones(3), None, None)
    assert caplog.text.count("the collator moves the tokens") == 1
    entry = measures.log_entry(one(), [{"trained_tokens": 10, "trained_tokens_a": 4}])
    assert entry["trained_tokens"] == 16
    assert [entry[f"trained_tokens_{name}"] for name in NAMES] == [5, 2, 0]
    assert not [name for name in entry if name.startswith("loss_")]
