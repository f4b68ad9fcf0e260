"""What a notebook shows: results, prepared rows, and errors with arguments of Python."""

from __future__ import annotations

import pytest

from sftkit.errors import ConfigError, RunError
from sftkit.run.pipeline import Pipeline
from sftkit.run.wording import in_python
from sftkit.testing import tiny_model, tiny_tokenizer

ROWS = [{"prompt": "Is 1 < 2?", "completion": " Yes & no."}, {"prompt": "Two?", "completion": " No, it is more."}]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A run of one step."""
    train = {"use_cpu": True, "max_steps": 1, "output_dir": str(tmp_path_factory.mktemp("notebook") / "run")}
    return Pipeline(tiny_model(), ROWS, tokenizer=tiny_tokenizer(), train=train)


@pytest.fixture(scope="module")
def shown(pipeline):
    return pipeline.preview(rows=2)


def test_a_preview_is_shown_as_text(shown):
    assert repr(shown).splitlines()[0] == "⟦trained⟧"
    assert "Is 1 < 2?⟦ Yes & no.</s>⟧" in repr(shown)


def test_a_preview_is_shown_in_colours_in_a_notebook(shown):
    page = shown._repr_html_()
    assert 'class="trained"' in page
    assert "&lt;" in page
    assert "<script" not in page


@pytest.mark.parametrize(("arguments", "words"), [({"split": "tain"}, "did you mean 'train'"), ({"row": 3}, "1 to 2")])
def test_a_preview_of_what_is_not_there_is_an_error(pipeline, arguments, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.preview(**arguments)


def test_a_prepared_run_and_a_pipeline_have_short_representations(pipeline):
    assert repr(pipeline.prepare()).splitlines()[1].startswith("  train: 2 rows, ")
    assert repr(pipeline).startswith("Pipeline(model loaded LlamaForCausalLM, data loaded list, in ")
    assert "hf_abcdefghijklmnop1234" not in repr(Pipeline("demo", "https://u:hf_abcdefghijklmnop1234@x.org/a.jsonl"))


def test_a_result_has_a_short_representation_and_advice_names_python_arguments(pipeline):
    result = pipeline.run()
    assert repr(result).splitlines()[0] == f"RunResult: trained, in {result.directory}"
    assert "tensor" not in repr(result)
    assert "<td>train_loss</td>" in result._repr_html_()
    (problem,) = pipeline.check()
    assert problem.fix.startswith(
        "continue it with resume=True, replace it with overwrite=True, or choose another train="
    )
    with pytest.raises(ConfigError, match="resume=True"):
        pipeline.run()
    pipeline._source.set(("train",), {"output_dir": str(result.directory), "learning_rate": 1.0}, "Pipeline()")
    pipeline._resume = True
    with pytest.raises(RunError, match=r'accept the change with allow_changes=\["train.'):
        pipeline.run()


WORDS = {
    "use --resume": "use resume=True",
    "accept the change with --allow-change data.eval": 'accept the change with allow_changes=["data.eval"]',
    "name the run's directory with --output": 'name the run\'s directory with train={"output_dir": DIR}',
    "start again with --resume auto or --overwrite": 'start again with resume="auto" or overwrite=True',
}


@pytest.mark.parametrize(("command", "python"), WORDS.items())
def test_advice_in_python(command, python):
    assert in_python(command) == python


def test_advice_on_the_command_line_names_its_options(in_process, tmp_path):
    (tmp_path / "file").touch()
    _, printed = in_process("run", "-m", "demo", "-d", "x.jsonl", "-o", tmp_path, "--resume")
    assert "name the run's directory with --output" in printed
