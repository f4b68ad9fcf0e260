"""A translated run trains the tokens that the tool's documentation says, and does a step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from sftkit import Pipeline
from sftkit_commands.init.detect import translate
from sftkit_commands.init.render import yaml_of

HERE = Path(__file__).parent
#: What a CPU can run; the rest of each configuration is as translated.
SMALL = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "save_strategy": "no"}
QUICK = {"eval_strategy": "no", "eval_on_start": False, "report_to": "none", "disable_tqdm": True}
ON_GPU = (
    "bf16",
    "fp16",
    "tf32",
    "load_best_model_at_end",
    "metric_for_best_model",
    "save_steps",
)
GPU_PLUGINS = ("liger", "bitsandbytes", "flash_attn", "activations", "unsloth", "samples", "fsdp", "deepspeed")


@pytest.fixture
def run_of(workdir):
    """The pipeline of a translated file, without what needs a GPU, and with further keys in the file."""

    def make(name, **changes):
        source = HERE / name
        for path in source.parent.iterdir():
            shutil.copy(path, workdir)
        if changes:
            values = yaml.safe_load((workdir / source.name).read_text())
            (workdir / source.name).write_text(yaml.safe_dump({**values, **changes}))
        t = translate(workdir / source.name, workdir)
        for file, text in {"sft.yaml": yaml_of(t, name), **t.files}.items():
            (workdir / file).write_text(text, encoding="utf-8")
        values = yaml.safe_load((workdir / "sft.yaml").read_text())
        train = {key: value for key, value in values["train"].items() if key not in ON_GPU}
        train |= {**SMALL, **QUICK, "optim": "adamw_torch", "use_cpu": True, "output_dir": str(workdir / "run")}
        train = {key: value for key, value in train.items() if key not in ("optim_args", "eval_steps")}
        plugins = {key: value for key, value in values.get("plugins", {}).items() if key not in GPU_PLUGINS}
        data = {**values["data"], "cache": False}
        return Pipeline(config={"model": values["model"], "data": data, "train": train, "plugins": plugins})

    return make


def trained(pipeline, row=0):
    """The text of a row, with what is trained between ``⟦ ⟧``."""
    prepared = pipeline.prepare()
    example, tokenizer = prepared.data.train[row], prepared.tokenizer
    parts, inside = [], False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if (label != -100) != inside:
            inside = not inside
            parts.append("⟦" if inside else "⟧")
        parts.append(tokenizer.decode([token]))
    return "".join(parts) + ("⟧" if inside else "")


CHAT_PROMPT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 0 plus one?<|im_end|>\n<|im_start|>assistant\n"
)
SECOND = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"


def test_axolotl_trains_the_output_of_alpaca_rows(run_of):
    text = trained(run_of("axolotl/01_lora_alpaca_8bit.yml", sample_packing=False, val_set_size=0))
    assert text == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nWhat is 0 plus one?\n\n### Response:\n⟦It is 1.</s>⟧"
    )


def test_axolotl_trains_each_answer_and_its_closing_token(run_of):
    entry = {"path": "chat.jsonl", "type": "chat_template"}
    text = trained(run_of("axolotl/08_train_on_inputs_multiturn.yml", datasets=[entry], train_on_inputs=False))
    assert text == f"{CHAT_PROMPT}⟦It is 1.</s>⟧{SECOND}⟦Yes.</s>⟧\n"


def test_train_on_inputs_of_axolotl_trains_all_turns_without_headers(run_of):
    entry = {"path": "chat.jsonl", "type": "chat_template"}
    text = trained(run_of("axolotl/08_train_on_inputs_multiturn.yml", datasets=[entry]))
    assert text.startswith(
        "<|im_start|>system\n⟦Be brief.<|im_end|>⟧\n<|im_start|>user\n⟦What is 0 plus one?<|im_end|>⟧\n"
    )
    assert text.endswith("⟦Yes.</s>⟧\n")


def test_roles_to_train_of_axolotl(run_of):
    entry = {"path": "chat.jsonl", "type": "chat_template", "roles_to_train": ["user"]}
    text = trained(run_of("axolotl/08_train_on_inputs_multiturn.yml", datasets=[entry], train_on_inputs=False))
    assert text.count("⟦") == 2
    assert "⟦Sure?<|im_end|>⟧" in text


def test_a_prompt_defined_in_axolotl_is_written_as_defined(run_of):
    run = run_of("axolotl/06_user_defined_prompt.yml", val_set_size=0)
    assert trained(run) == "<s>You answer questions.\n[INST] What is 0 plus one? [/INST]⟦It is 1.</s>⟧"
    assert trained(run, 1) == "<s>You answer questions.\n[INST] What is 1 plus one? Briefly. [/INST]⟦It is 2.</s>⟧"


def test_segments_and_texts_of_axolotl(run_of):
    assert trained(run_of("axolotl/05_input_output_template_free.yml")) == "<s>What is 0 plus one?\n⟦It is 1.</s>⟧"
    entry = {"path": "articles.jsonl", "type": "completion", "field": "article"}
    run = run_of("axolotl/04_completion_pretraining_texts.yml", datasets=[entry], sample_packing=False, val_set_size=0)
    assert trained(run) == "<s>⟦What is 0 plus one? It is 1.</s>⟧"


def test_llamafactory_renders_alpaca_rows_as_conversations(run_of):
    text = trained(run_of("llamafactory/06_own_columns.json"))
    assert text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 0 plus one?\n\n### Response:\n⟦It is 1.</s>⟧\n\n"
    )


def test_mask_history_of_llamafactory_trains_the_last_answer(run_of):
    run = run_of("llamafactory/02_qlora_otfq.yaml", dataset="chats", template="qwen", additional_target=None)
    assert trained(run) == f"{CHAT_PROMPT}It is 1.</s>{SECOND}⟦Yes.</s>⟧\n"


def test_train_on_prompt_of_llamafactory_trains_everything(run_of):
    run = run_of("llamafactory/04_several_datasets_interleaved.yaml", dataset="chats", eval_dataset=None)
    text = trained(run)
    assert text.startswith("System⟦: Be brief.</s>\nHuman: What") or text.startswith("S⟦ystem: Be brief.")
    assert text.count("⟦") == 1


def test_trl_trains_all_of_a_conversation_unless_asked_otherwise(run_of):
    all_of_it = trained(run_of("trl/01_sft_lora.yaml", eval_strategy="no"))
    assert all_of_it.count("⟦") == 1
    assert "⟦" in all_of_it[: len("<|im_start|>")]
    answers = trained(run_of("trl/01_sft_lora.yaml", eval_strategy="no", assistant_only_loss=True))
    assert answers == f"{CHAT_PROMPT}⟦It is 1.</s>⟧{SECOND}⟦Yes.</s>⟧\n"


def test_the_collator_of_a_script_trains_what_follows_its_template(run_of):
    assert (
        trained(run_of("trl/05_completions.py")) == "<s>### Question: What is 0 plus one?\n### Answer:⟦ It is 1.</s>⟧"
    )
    assert trained(run_of("trl/10_prompt_completion.yaml")) == "<s>What is 0 plus one?⟦ It is 1.</s>⟧"


def test_sources_that_are_joined_use_each_row_once(run_of):
    data = run_of("axolotl/07_several_datasets_liger.yml").prepare().data
    assert data.summary()["train"]["rows read"] == 40


RUNS = {
    "axolotl": ("01_lora_alpaca_8bit.yml", "07_several_datasets_liger.yml", "10_streaming_alpaca_chat.yml"),
    "llamafactory": (
        *("04_several_datasets_interleaved.yaml", "05_streaming_pretraining.yaml", "06_own_columns.json"),
        "08_continue_adapter.yaml",
    ),
    "trl": ("01_sft_lora.yaml", "04_mixture.yaml", "05_completions.py", "06_qlora.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{tool}/{file}" for tool, files in RUNS.items() for file in files])
def test_a_translated_run_does_a_step(name, run_of, workdir):
    result = run_of(name).run()
    assert result.status == "trained"
    lines = [json.loads(line) for line in (workdir / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("step") == 1 for line in lines)
