"""A student learns from a teacher's distributions: loss and gradients equal those of full logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, TrainerCallback

from sftkit.data.token_store import TokenStore
from sftkit.errors import ConfigError, RunError
from sftkit.memory.run import estimate_run
from sftkit.run.pipeline import Pipeline
from sftkit.testing import CHATML, run_problems, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.training.batches import Batch, WithPositions, micro_batches
from sftkit.training.frozen import FrozenModel, FrozenStates
from sftkit.training.head import LossHead
from sftkit.training.loss import OutputHead, summed_loss
from sftkit.training.targets import Targets
from sftkit_plugins.distill import Distill
from sftkit_plugins.distill.divergence import divergence, log_probabilities
from sftkit_plugins.distill.loss import FromStates, FromTop, Mixture, OnlineLoss
from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
from sftkit_plugins.pad import PadCollator

PADDED = "no:flash_attn"
TOKENS, STUDENT, TEACHER, WIDTH = 21, 24, 32, 8  # tokens of the tokenizer; logits of both, some of them of padding
KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]
CASES = [(kl, beta, temperature, alpha) for kl, beta in KINDS for temperature, alpha in ((1.0, 1.0), (2.5, 0.3))]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def divergences(student, teacher, kl, beta):
    """Of each row of two tables of probabilities, as the papers define them."""
    if kl == "reverse":
        student, teacher, kl = teacher, student, "forward"
    if kl == "forward":
        return functional.kl_div(student.log(), teacher, reduction="none").sum(1)
    mixed = beta * teacher + (1 - beta) * student
    first, second = (functional.kl_div(mixed.log(), each, reduction="none").sum(1) for each in (teacher, student))
    return beta * first + (1 - beta) * second


def dense(student, teacher, targets, kl, beta, temperature, alpha, weights=None, top=None):
    """The summed loss from full logits, in float64; ``top`` tokens of the teacher, with the rest as one."""
    p, q = ((logits.double()[:, :TOKENS] / temperature).softmax(1) for logits in (student, teacher))
    if top is not None:
        p, q = (torch.cat([x.gather(1, top), 1 - x.gather(1, top).sum(1, keepdim=True)], 1) for x in (p, q))
    losses = alpha * temperature**2 * divergences(p, q, kl, beta)
    losses = losses + (1 - alpha) * functional.cross_entropy(student.double(), targets, reduction="none")
    return (losses if weights is None else losses * weights).sum()


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, WIDTH, requires_grad=True), torch.nn.Parameter(torch.randn(STUDENT, WIDTH))
    teacher, targets = torch.randn(40, TEACHER) * 2, torch.randint(0, TOKENS, (40,))
    return hidden, weight, teacher, targets, torch.rand(40)


def identity(logits):
    return FrozenStates(logits, OutputHead(TEACHER, lambda states: states), TOKENS)


def assert_equals(loss, expected, case, weights=None):
    hidden, weight, _, targets, _ = case
    total, result = summed_loss(loss, hidden, OutputHead(STUDENT, lambda x: x @ weight.T, weight), targets, weights)
    total.backward()
    again, same = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    value = expected(again @ same.T)
    value.backward()
    torch.testing.assert_close(total, value.float())
    torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, same.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain, _ = summed_loss(loss, hidden, OutputHead(STUDENT, lambda x: x @ weight.T, weight), targets, weights)
    torch.testing.assert_close(plain, total)
    return result


@pytest.mark.parametrize(("kl", "beta", "temperature", "alpha"), CASES)
def test_loss_and_gradients_equal_those_of_full_logits(case, monkeypatch, kl, beta, temperature, alpha):
    monkeypatch.setattr("sftkit.training.loss.CHUNK_BYTES_CPU", 4 * STUDENT * 16)
    _, _, teacher, targets, weights = case
    loss = FromStates(Mixture(kl, beta, temperature, alpha, TOKENS), identity(teacher))
    assert_equals(
        loss, lambda logits: dense(logits, teacher, targets, kl, beta, temperature, alpha, weights), case, weights
    )


def top_of(teacher, k, temperature):
    logp = torch.log_softmax(teacher[:, :TOKENS] / temperature, 1)
    values, ids = logp.topk(k, 1)
    rest = torch.logsumexp(logp.scatter(1, ids, -torch.inf), 1)
    return ids, values, rest


@pytest.mark.parametrize(("kl", "beta", "temperature", "alpha"), CASES)
def test_the_tokens_outside_of_the_top_ones_count_as_one(case, monkeypatch, kl, beta, temperature, alpha):
    monkeypatch.setattr("sftkit.training.loss.CHUNK_BYTES_CPU", 4 * STUDENT * 16)
    _, _, teacher, targets, weights = case
    ids, values, rest = top_of(teacher, 5, temperature)
    loss = FromTop(Mixture(kl, beta, temperature, alpha, TOKENS), ids.int(), values, rest)
    assert_equals(
        loss, lambda logits: dense(logits, teacher, targets, kl, beta, temperature, alpha, weights, ids), case, weights
    )


@pytest.mark.parametrize(("kl", "beta", "temperature", "alpha"), CASES)
def test_all_tokens_stored_are_as_good_as_the_teacher(case, kl, beta, temperature, alpha):
    _, _, teacher, targets, _ = case
    ids, values, rest = top_of(teacher, TOKENS, temperature)
    loss = FromTop(Mixture(kl, beta, temperature, alpha, TOKENS), ids.int(), values, rest)
    assert_equals(loss, lambda logits: dense(logits, teacher, targets, kl, beta, temperature, alpha), case)


def save(directory, model, vocab_size=320):
    """A teacher in a directory; its head may be wider than the vocabulary of its tokenizer."""
    model.save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML, vocab_size=vocab_size).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher of another width and depth, whose vocabulary is padded."""
    made = tiny_model("qwen3", hidden_size=48, num_hidden_layers=1, vocab_size=384, seed=7)
    with torch.no_grad():
        made.lm_head.weight.mul_(30)
    return save(tmp_path_factory.mktemp("models") / "teacher", made)


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Makes a pipeline of three steps of eight rows, in two micro-batches."""
    monkeypatch.chdir(tmp_path)

    def make(name="run", *, plugins=(), train=None, model=None, data=None, **options):
        steps = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
        steps |= {"use_cpu": True, "seed": 0, "learning_rate": 1e-2, "output_dir": str(tmp_path / name)}
        return Pipeline(
            model=tiny_model() if model is None else model,
            data=weighted_rows(24) if data is None else data,
            tokenizer=tiny_tokenizer(chat_template=CHATML),
            plugins=list(plugins),
            train={**steps, **(train or {})},
            **options,
        )

    return make


def weighted_rows(number, first=0):
    """Conversations of different lengths, of which some weigh half."""
    rows = tiny_conversations(number, first)
    for at, row in enumerate(rows):
        row["messages"][1]["content"] *= 1 + at % 3
        row["messages"][1]["weight"] = 0.5 if at % 2 else 1.0
    return rows


def log_of(run):
    return [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]


def losses(run):
    return [entry["loss"] for entry in log_of(run) if "loss" in entry]


def test_a_step_equals_one_with_full_logits_and_weights_over_micro_batches(make_run, teacher):
    options = {"teacher": teacher, "kl": "jsd", "beta": 0.3, "temperature": 1.7, "alpha": 0.6}
    sgd = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    pipeline = make_run(plugins=[{"distill": options}], train={**sgd, "train_sampling_strategy": "sequential"})
    rows = list(pipeline.prepare().data.train)[:8]
    run = pipeline.run()
    student, other = tiny_model(), AutoModelForCausalLM.from_pretrained(teacher).eval()
    total, weight = 0.0, 0.0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        at = (labels[0, 1:] != -100).nonzero().squeeze(1)
        weights = torch.tensor(row["loss_weights"]).double()[at + 1]
        with torch.no_grad():
            given = other(ids).logits[0, at, :TOKENS_OF_TINY]
        made = student(ids).logits[0, at]
        total = total + dense_of(made, given, labels[0, at + 1], weights, **options)
        weight += weights.sum()
    (total / weight).backward()
    assert losses(run)[0] == pytest.approx(float(total / weight), rel=1e-5)
    for name, value in student.named_parameters():
        expected = value.detach() - 0.1 * value.grad
        torch.testing.assert_close(run.model.get_parameter(name).detach(), expected, rtol=1e-5, atol=1e-7, msg=name)


TOKENS_OF_TINY = len(tiny_tokenizer())


def dense_of(made, given, targets, weights, kl, beta, temperature, alpha, teacher=""):
    p, q = ((x.double()[:, :TOKENS_OF_TINY] / temperature).softmax(1) for x in (made, given))
    each = alpha * temperature**2 * divergences(p, q, kl, beta)
    return ((each + (1 - alpha) * functional.cross_entropy(made.double(), targets, reduction="none")) * weights).sum()


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [["packing"], [PADDED], ["packing", PADDED]])
def test_packed_and_padding_free_batches_have_the_losses_of_padded_ones(make_run, teacher, plugins):
    whole = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1, "max_steps": 2}
    options = {"data": {"train": "rows.jsonl", "max_length": 256}}
    write_rows(24)
    plain = make_run("plain", plugins=[{"distill": {"teacher": teacher}}], train=whole, data=options["data"]).run()
    other = make_run("other", plugins=[{"distill": {"teacher": teacher}}, *plugins], train=whole, data=options["data"])
    assert losses(other.run()) == pytest.approx(losses(plain), rel=1e-5)


def test_a_teacher_need_not_keep_the_examples_of_a_padding_free_batch_apart():
    teacher = FrozenModel(tiny_model("opt", ffn_dim=64, word_embed_proj_dim=32), 320)
    rows = [{"input_ids": [7 + n, *range(20, 20 + length)], "labels": [-100] * 3 + [9] * (length - 2)} for n, length in
            enumerate((3, 9, 5))]  # fmt: skip
    states = []
    for collator in (PaddingFreeCollator(), PadCollator(0)):
        batch = Batch.of(WithPositions(collator)(rows))
        states.append(teacher(batch.inputs, batch.targets).hidden_KD)
    torch.testing.assert_close(*states)
    data = Dataset.from_list(rows)
    with OnlineLoss(Mixture("forward", 0.5, 1.0, 0.5, 320), teacher, 3, 16).held(None, data, PaddingFreeCollator()):
        pass  # it is not refused


def write_rows(number):
    rows = weighted_rows(number)
    for row in rows:
        del row["messages"][1]["weight"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("plugins", [[{"peft": {"r": 4}}], *map(slow, ([], ["activations"], ["packing"]))])
def test_a_student_that_is_its_own_teacher_learns_nothing(make_run, tmp_path, plugins):
    teacher = save(tmp_path / "same", tiny_model())
    options = {"teacher": teacher, "alpha": 1.0, "temperature": 2.0}
    run = make_run(plugins=[{"distill": options}, *plugins], train={"max_steps": 1, "weight_decay": 0.0}).run()
    (entry,) = [entry for entry in log_of(run) if "loss" in entry]
    assert entry["loss"] == pytest.approx(0, abs=1e-6)
    assert entry["grad_norm"] < 1e-5
    assert entry["nll"] > 1


def test_the_teacher_is_unchanged_and_not_saved(make_run, teacher):
    before = load_file(Path(teacher, "model.safetensors"))
    found = {}

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, optimizer=None, **_):
            found["trained"] = sum(len(group["params"]) for group in optimizer.param_groups)

    run = make_run(plugins=[{"distill": {"teacher": teacher}}], callbacks=[Watch()], eval=weighted_rows(4, 100)).run()
    after = load_file(Path(teacher, "model.safetensors"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found["trained"] == len(list(tiny_model().parameters()))
    saved = load_file(run.directory / "model.safetensors")
    assert saved.keys() <= tiny_model().state_dict().keys()
    assert {"eval_loss", "eval_divergence", "eval_nll"} <= run.metrics.keys()


def test_no_tensor_is_as_large_as_the_logits_of_a_batch(teacher):
    model, tokens, wide = tiny_model(vocab_size=4096), 512, 4096
    other = FrozenModel(tiny_model("qwen3", vocab_size=wide, seed=3), wide)
    loss = OnlineLoss(Mixture("forward", 0.5, 2.0, 0.5, wide), other, 1, tokens)
    ids = torch.randint(0, wide, (4, tokens // 2))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)
    head = LossHead(model, loss)
    with head.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftkit.training.loss.CHUNK_BYTES_CPU", 4 * wide * 16)
        head.ask(model, {"input_ids": ids, "use_cache": False}, Targets.of(labels))  # the first call inspects both
        with Largest() as largest:
            head.ask(model, {"input_ids": ids, "use_cache": False}, Targets.of(labels))[0].backward()
    assert largest.numel < ids.numel() * wide / 4


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(x.numel() for x in tree_leaves(made) if torch.is_tensor(x)), 0)
        return made


def store(to, teacher, *arguments, in_process):
    """Stores the values of all tokens, unless the arguments say otherwise."""
    common = ["train.use_cpu=true", "--teacher", teacher, "--to", to, "-k", "1000", "--values", "float32"]
    code, text = in_process("distill-rows", *common, *arguments)
    assert code == 0, text
    return text


@pytest.fixture
def rows_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(24)
    save(tmp_path / "model", tiny_model())
    return ["--model", "model", "--data", "rows.jsonl", "data.max_length=256"]


DATA = {"train": "rows.jsonl", "max_length": 256}


@pytest.mark.parametrize(("kl", "plugins", "more"), [
    slow("forward", [], {}),
    ("reverse", ["packing"], {}),
    slow("jsd", ["flash_attn"], {"dataloader_num_workers": 1}),
])  # fmt: skip
def test_all_tokens_stored_give_the_run_of_the_teacher(make_run, rows_file, teacher, in_process, kl, plugins, more):
    store("rows", teacher, "--temperature", "2", *rows_file, in_process=in_process)
    options = {"kl": kl, "temperature": 2.0}
    stored = make_run("stored", plugins=[{"distill": {"rows": "rows", **options}}, *plugins], data=DATA, train=more)
    online = make_run("online", plugins=[{"distill": {"teacher": teacher, **options}}, *plugins], data=DATA)
    assert losses(stored.run()) == pytest.approx(losses(online.run()), rel=1e-5)


@pytest.mark.slow
def test_stored_rows_serve_a_stream_and_another_order(make_run, rows_file, teacher, in_process):
    text = store("rows", teacher, *rows_file, "-p", "packing", in_process=in_process)
    assert "24 documents" in text
    assert "100.00%" in text
    streamed = {**DATA, "streaming": True}
    run = make_run(plugins=[{"distill": {"rows": "rows"}}], data=streamed, train={"max_steps": 2}).run()
    assert len(losses(run)) == 2


def test_rows_whose_trained_tokens_are_not_those_stored_are_an_error(make_run, rows_file, teacher, in_process):
    store("rows", teacher, *rows_file, "-k", "4", in_process=in_process)
    other = [{"distill": {"rows": "rows"}}, {"formats": {"loss": "all"}}]
    with pytest.raises(RunError, match=r"24 of 24 rows of train .*; row 1: its document has \d+ trained tokens, and"):
        make_run(plugins=other, data=DATA).run()
    write_rows(26)
    with pytest.raises(RunError, match=r"2 of 26 rows of train .*; row 25: its document of \d+ tokens"):
        make_run(plugins=other[:1], data=DATA).run()


def test_a_batch_that_is_split_keeps_the_values_of_its_tokens(rows_file, teacher, in_process):
    store("rows", teacher, *rows_file, "-k", "4", in_process=in_process)
    prepared = Pipeline(model="model", data=DATA, plugins=[{"distill": {"rows": "rows"}}]).prepare()
    values = TokenStore.open("rows", "")
    for collator in (prepared.collator, PaddingFreeCollator()):
        batch = WithPositions(collator, values)([prepared.data.train[row] for row in range(7)])
        whole = Batch.of(batch).values["logp"]
        parts = [Batch.of(part).values["logp"] for part in micro_batches(batch, 3)]
        assert len(parts) == 3
        assert torch.equal(torch.cat(parts), whole)
        assert all(len(Batch.of(p).values["ids"]) == len(Batch.of(p).targets.tokens_K) for p in micro_batches(batch, 3))


@pytest.mark.slow
def test_a_resumed_run_is_exact(make_run, teacher):
    plugins = [{"distill": {"teacher": teacher}}]
    saving = {"save_steps": 1, "max_steps": 3, "lr_scheduler_type": "constant"}
    whole = make_run("whole", plugins=plugins, train=saving).run()
    make_run("again", plugins=plugins, train={**saving, "max_steps": 2}).run()
    again = make_run("again", plugins=plugins, train=saving, resume=True, allow_changes=["train.max_steps"]).run()
    assert losses(again)[-1] == losses(whole)[-1]
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_estimate_counts_the_teacher(make_run, teacher):
    plain, with_teacher = (
        estimate_run(make_run(name, plugins=plugins).prepare())
        for name, plugins in (("plain", []), ("with", [{"distill": {"teacher": teacher}}]))
    )
    weights = AutoModelForCausalLM.from_pretrained(teacher)
    assert with_teacher.items["other models"] == sum(value.nbytes for value in tensors_of(weights))
    assert with_teacher.items["loss head"] > plain.items["loss head"]
    assert "other models" not in plain.items


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


def test_another_tokenizer_is_refused_with_the_first_difference(make_run, tmp_path):
    other = save(tmp_path / "other", tiny_model(), vocab_size=300)
    with pytest.raises(RunError, match=r"id 300 is '.+' here, and no token there"):
        make_run(plugins=[{"distill": {"teacher": other}}]).run()


@pytest.mark.slow
def test_a_teacher_that_mixes_packed_documents_is_refused(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit_plugins.distill.loss.difference_from_alone", lambda model, trials: "a leak")
    teacher = save(tmp_path / "leaky", tiny_model())
    with pytest.raises(ConfigError, match=r"the teacher \(model type llama\) does not keep .* a leak"):
        make_run(plugins=[{"distill": {"teacher": teacher}}, "packing"]).run()
    make_run("padded", plugins=[{"distill": {"teacher": teacher}}], train={"max_steps": 1}).run()


@pytest.mark.parametrize(("options", "plugins", "what"), [
    ({}, {}, "neither a teacher nor stored rows"),
    ({"teacher": "a", "rows": "b"}, {}, "a teacher and stored rows"),
    ({"teacher": "a"}, {"liger": {"cross_entropy": True}}, "liger's loss"),
    ({"teacher": "a"}, {"deepspeed": {"stage": 3}}, "ZeRO-3"),
    ({"teacher": "a"}, {"vision": {}}, "without images"),
    ({"rows": "nowhere"}, {}, "there is no directory"),
    ({"rows": "nowhere"}, {"completion_only": {"response_template": "x"}}, "fewer tokens"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_read(options, plugins, what):
    problems = run_problems(Distill(**options), plugins=plugins)
    assert any(what in problem.what for problem in problems), problems


def test_rows_of_another_temperature_are_refused(rows_file, teacher, in_process):
    store("rows", teacher, *rows_file, "-k", "4", "--temperature", "2", in_process=in_process)
    (problem,) = run_problems(Distill(rows="rows"))
    assert "stored at temperature 2, but this is 1" in problem.what


@pytest.mark.slow
def test_distill_rows_refuses_a_stream_and_another_tokenizer(rows_file, tmp_path, in_process):
    other = save(tmp_path / "other", tiny_model(), vocab_size=300)
    common = ["distill-rows", *rows_file, "--to", "rows"]
    code, text = in_process(*common, "--teacher", other)
    assert (code, "id 300 is" in text) == (2, True), text
    code, text = in_process(*common, "--teacher", "model", "data.streaming=true", "train.max_steps=1")
    assert (code, "data.streaming" in text) == (2, True), text
    assert not Path("rows").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kl", "beta"), [("forward", 0.0), ("jsd", 0.3), ("jsd", 0.9), ("reverse", 1.0)])
def test_divergences_are_those_of_trl(kl, beta):
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher, labels = torch.randn(1, 9, 21), torch.randn(1, 9, 21), torch.zeros(1, 9, dtype=torch.long)
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=2.0, reduction="sum")
    logp, logq = (log_probabilities(logits[0], 2.0) for logits in (student, teacher))
    torch.testing.assert_close(divergence(kl, beta)(logp, logq).value_K.sum(), expected)
