"""Scripts of 2023 and 2024 with trainers, callbacks and collators of their own, rewritten."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image as ImageFeature, List, Value
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    MistralConfig,
    MistralForCausalLM,
    TrainerCallback,
    get_cosine_schedule_with_warmup,
)
from transformers.trainer_pt_utils import get_parameter_names

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer


class OwnOptimization(SFTTrainer):
    """Makes optimizer and schedule in one method, from the configuration of the model's name."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        sizes = AutoConfig.from_pretrained(self.model.config.name_or_path)
        options = {"lr": self.args.learning_rate, "betas": (0.9, 0.98), "eps": 1e-6 * sizes.num_attention_heads}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=self.args.weight_decay, **options)
        self.lr_scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, num_warmup_steps=int(num_training_steps * 0.5), num_training_steps=num_training_steps
        )


def test_optimizer_and_schedule_of_a_subclass(named, rows, arguments, tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    model = AutoModelForCausalLM.from_pretrained(named, use_cache=False)
    model.resize_token_embeddings(len(tokenizer))
    trainer = OwnOptimization(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows,
        dataset_text_field="text",
        max_seq_length=4096,
        dataset_num_proc=2,
        packing=False,
        args=arguments(max_steps=4, learning_rate=5e-5, weight_decay=0.01, gradient_accumulation_steps=2),
    )
    trainer.train(resume_from_checkpoint=False)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.0, 2.5e-5, 5e-5, 2.5e-5], abs=1e-9)


class TwoGroups(SFTTrainer):
    """Decays all weights but norms and biases."""

    def create_optimizer(self) -> Any:
        decayed = [name for name in get_parameter_names(self.model, [nn.LayerNorm]) if "bias" not in name]
        groups: Any = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            groups[name in decayed].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": self.args.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=self.args.learning_rate,
        )
        return self.optimizer


def test_a_new_mistral_is_pretrained_on_packed_texts(rows, arguments, tokenizer, tmp_path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "vocab_size": 320}
    model_config = MistralConfig(**sizes, pad_token_id=tokenizer.eos_token_id, attention_dropout=0.1)
    tokenizer.pad_token_id, tokenizer.model_max_length = tokenizer.eos_token_id, 32
    split = rows.train_test_split(test_size=0.4, seed=1)
    trainer = TwoGroups(
        model=MistralForCausalLM(model_config),
        args=arguments(
            max_steps=-1,
            num_train_epochs=1,
            evaluation_strategy="steps",
            eval_steps=1 / 2,
            save_strategy="steps",
            save_steps=1 / 2,
            logging_dir=f"{tmp_path}/logs/",
            lr_scheduler_type="polynomial",
            bf16=True,
            bf16_full_eval=True,
            weight_decay=0.1,
        ),
        train_dataset=split["train"],
        eval_dataset=split["test"],
        dataset_text_field="text",
        packing=True,
        max_seq_length=model_config.max_position_embeddings,
        tokenizer=tokenizer,
    )
    trainer.train()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2


class PromptWeight(SFTTrainer):
    """Weights the prompt's tokens, whose number comes with the batch."""

    def __init__(self, *args: Any, prompt_weight: float = 1.0, padding_token_id: int = -100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_weight, self.padding_token_id = prompt_weight, padding_token_id

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        tokens, lengths = inputs.pop("input_ids"), inputs["prompt_lens"]
        outputs = model(tokens)
        kept = functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1),
            tokens[:, 1:].flatten(),
            reduction="none",
            ignore_index=self.padding_token_id,
        ).view(tokens.shape[0], -1)
        in_prompt = torch.arange(kept.shape[1]) <= lengths[:, None]
        loss = (kept * torch.where(in_prompt, self.prompt_weight, 1.0)).mean()
        self.seen = loss.item()
        return (loss, outputs) if return_outputs else loss


def test_the_loss_weighs_prompts_by_a_column(rows, arguments, tokenizer, losses) -> None:
    def tokens_of(row: Any) -> dict[str, Any]:
        prompt = tokenizer(row["question"])["input_ids"]
        both = prompt + tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        return {"input_ids": both, "attention_mask": [1] * len(both), "labels": both, "prompt_lens": len(prompt)}

    trainer = PromptWeight(
        model=tiny_model(),
        args=arguments(remove_unused_columns=False, max_steps=1),
        train_dataset=rows.map(tokens_of, remove_columns=rows.column_names),
        tokenizer=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        prompt_weight=0.1,
        padding_token_id=tokenizer.pad_token_id,
        max_seq_length=64,
        dataset_text_field="text",
    )
    trainer.train()
    assert losses(trainer) == pytest.approx([trainer.seen], abs=1e-4)


class Discounted(SFTTrainer):
    """Weights later tokens more; its own argument is set before the trainer is made."""

    def __init__(self, *args: Any, gamma: float = 0.98, **kwargs: Any) -> None:
        self.gamma = gamma
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        labels = inputs.get("labels")
        outputs = model(**inputs)
        valid = (labels != -100).float()
        weights = (1 - self.gamma ** (valid.cumsum(1) * valid)) * valid
        chosen = outputs.logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        loss = -(weights * chosen).sum() / valid.sum().clamp_min(1)
        return (loss, outputs) if return_outputs else loss


def test_a_discounted_loss_is_trained_and_evaluated(rows, arguments, tokenizer, losses) -> None:
    trainer = Discounted(
        model=tiny_model(),
        tokenizer=tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
        gamma=0.9,
        dataset_text_field="text",
        max_seq_length=64,
        args=arguments(evaluation_strategy="epoch", overwrite_output_dir=True, gradient_accumulation_steps=2),
    )
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses(trainer)) == 2
    assert evaluated[-1] == pytest.approx(losses(trainer)[-1], rel=0.2)


class Distilled(SFTTrainer):
    """Follows a teacher in a training loop of its own, whose loss has three parts."""

    def __init__(self, teacher: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher.eval()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        outputs = self.model(**inputs)
        with torch.no_grad():
            target = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        distance = functional.kl_div(outputs.logits.log_softmax(-1), target.softmax(-1), reduction="batchmean")
        return 0.5 * outputs.loss + 0.5 * distance, distance, outputs.loss

    def train(self, resume_from_checkpoint: bool = False) -> list[float]:
        rows = DataLoader(self.train_dataset, self.args.per_device_train_batch_size, collate_fn=self.data_collator)
        self.create_optimizer_and_scheduler(len(rows))
        distances = []
        for batch in rows:
            loss, distance, _ = self.compute_loss(self.model, batch)
            loss.backward()
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
            distances.append(distance.item())
        return distances


def test_a_student_trained_in_a_loop_of_its_own_nears_its_teacher(rows, arguments, tokenizer) -> None:
    torch.manual_seed(1)
    teacher = tiny_model()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    trainer = Distilled(
        teacher,
        model=tiny_model(),
        tokenizer=tokenizer,
        args=arguments(learning_rate=1e-2, lr_scheduler_type="constant", evaluation_strategy="no"),
        train_dataset=Dataset.from_list(rows.to_list() * 3),
        formatting_func=lambda example: list(example["text"]),
        max_seq_length=64,
    )
    distances = trainer.train()
    assert distances[-1] < distances[0]


class WithConfidence(SFTTrainer):
    """Adds a term of the last position's logits to the parent's loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss - 0.01 * outputs["logits"][:, -1].log_softmax(-1).mean()
        return (loss, outputs) if return_outputs else loss


def test_a_term_added_to_the_parents_loss(rows, config, tokenizer) -> None:
    data = rows.map(lambda row: {"text": row["text"] + tokenizer.eos_token})
    trainer = WithConfidence(
        model=tiny_model(),
        processing_class=tokenizer,
        args=config(dataset_text_field="text", max_seq_length=256, warmup_ratio=0.03, adam_beta2=0.99, max_steps=1),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorForCompletionOnlyLM(response_template="### A:", tokenizer=tokenizer),
    )
    metrics = trainer.evaluate()
    plain = SFTTrainer.compute_loss(trainer, trainer.model, next(iter(trainer.get_eval_dataloader())))
    assert metrics["eval_loss"] > plain.item()
    assert trainer.train().training_loss == pytest.approx(metrics["eval_loss"], rel=0.1)


class Passing(SFTTrainer):
    """Leaves torch data sets as they are, and refuses all others, as scripts for TRL 0.7 did."""

    def _prepare_dataset(
        self,
        dataset: Any,
        tokenizer: Any,
        packing: Any,
        dataset_text_field: Any,
        max_seq_length: Any,
        formatting_func: Any,
        infinite: Any,
        num_of_sequences: Any,
        chars_per_token: Any,
    ) -> Any:
        if isinstance(dataset, torch.utils.data.Dataset):
            return dataset
        raise NotImplementedError


class Stories(torch.utils.data.Dataset):
    """Rows of token ids, padded to one length."""

    def __init__(self, tokenizer: Any) -> None:
        texts = [f"Story {number}." for number in range(6)]
        self.rows = [tokenizer(text, padding="max_length", max_length=16) for text in texts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: torch.tensor(self.rows[index][name]) for name in ("input_ids", "attention_mask")}
        return {**row, "labels": row["input_ids"]}


@pytest.mark.parametrize("kind", [SFTTrainer, Passing])
def test_a_torch_data_set_goes_to_the_trainer(arguments, tokenizer, kind, losses) -> None:
    trainer = kind(
        model=tiny_model(),
        tokenizer=tokenizer,
        train_dataset=Stories(tokenizer),
        args=arguments(),
        packing=False,
        dataset_text_field="text",
        max_seq_length=64,
    )
    trainer.train()
    assert len(losses(trainer)) == 2


class Samples(TrainerCallback):
    """Lets the model continue prompts of the evaluation set."""

    def __init__(self, template: list[int]) -> None:
        self.template, self.samples = torch.tensor(template), []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, tokenizer = kwargs["model"], kwargs["tokenizer"]
        for row in next(iter(kwargs["eval_dataloader"]))["input_ids"].cpu():
            windows = row.unfold(0, len(self.template), 1)
            (at, *_) = (windows == self.template).all(1).nonzero().flatten().tolist()
            prompt = row[: at + len(self.template)].unsqueeze(0).to(model.device)
            mask = torch.ones_like(prompt)
            (made,) = model.generate(
                inputs=prompt, attention_mask=mask, max_new_tokens=3, pad_token_id=tokenizer.pad_token_id
            )
            self.samples.append(tokenizer.decode(made[prompt.shape[1] :]))


def after_warmup(step: int, total: int, warmup: int) -> float:
    return step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def test_a_callback_samples_from_the_evaluation_set(rows, arguments, tokenizer) -> None:
    model, template = tiny_model(), tokenizer.encode("### A:", add_special_tokens=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(after_warmup, total=2, warmup=1))
    samples = Samples(template)
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        optimizers=(optimizer, schedule),
        data_collator=DataCollatorForCompletionOnlyLM(
            response_template=template,
            instruction_template=tokenizer.encode("### Q:", add_special_tokens=False),
            tokenizer=tokenizer,
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        max_seq_length=128,
        callbacks=[samples],
        args=arguments(
            gradient_checkpointing=True, group_by_length=True, evaluation_strategy="steps", eval_steps=2, data_seed=1
        ),
        dataset_kwargs={"add_special_tokens": False},
        dataset_text_field="text",
    )
    trainer.evaluate()
    trainer.train()
    assert len(samples.samples) == 4


def test_a_language_modeling_collator_and_a_sample(rows, arguments, tokenizer, tmp_path) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows.to_list())
    frame["instruction"] = frame.apply(lambda row: f"Question: {row['question']}\nAnswer: {row['answer']}", axis=1)
    data = Dataset.from_pandas(frame[["instruction"]]).rename_column("instruction", "text")
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_model()
    trainer = SFTTrainer(
        model=model,
        train_dataset=data,
        args=arguments(gradient_accumulation_steps=2, warmup_steps=3, save_strategy="epoch"),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        tokenizer=tokenizer,
    )
    model.config.use_cache = False
    trainer.train()
    trainer.model.save_pretrained(tmp_path)
    inputs = tokenizer("Question: What?\nAnswer:", return_tensors="pt")
    assert trainer.model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


VISION = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}"
)
VISION += "{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"


@pytest.fixture
def vision() -> tuple[Any, Any]:
    """A tiny LLaVA model and its processor, for images of 8 by 8 pixels."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tiny_tokenizer(chat_template=VISION)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    eyes = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=32)
    text = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(tokenizer))
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=eyes, text_config=text, image_token_index=image))
    pixels = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    options = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, LlavaProcessor(pixels, tokenizer, image_token="<image>", chat_template=VISION, **options)


def of_images(processor: Any, messages_of: Any) -> Any:
    """A collator of a script: it renders messages, and masks padding and images."""
    tokenizer = processor.tokenizer

    def collate(examples: list[Any]) -> Any:
        pairs = [messages_of(example) for example in examples]
        texts = [processor.apply_chat_template(messages, tokenize=False) for messages, _ in pairs]
        batch = processor(text=texts, images=[image for _, image in pairs], return_tensors="pt", padding=True)
        labels = batch["input_ids"].clone()
        labels[labels == tokenizer.pad_token_id] = -100
        labels[labels == tokenizer.convert_tokens_to_ids("<image>")] = -100
        return {**batch, "labels": labels}

    return collate


def turns(image: Any, answer: str) -> list[dict[str, Any]]:
    asked = [{"type": "image", "image": image, "text": None}, {"type": "text", "text": "What?", "image": None}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer, "image": None}]},
    ]


def test_conversations_with_images_in_a_list(vision, tmp_path) -> None:
    model, processor = vision
    data = [turns(Image.new("RGB", (8, 8), (shade, 0, 0)), f"red {shade}") for shade in range(6)]
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True, init_lora_weights="gaussian")
    get_peft_model(model, lora)  # and the same base and configuration go to the trainer
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        dataset_text_field="",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data[:2],
        data_collator=of_images(processor, lambda messages: (messages, messages[0]["content"][0]["image"])),
        peft_config=lora,
        tokenizer=processor.tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.train_dataset is data
    assert trainer.evaluate()["eval_loss"] < before


def test_a_data_set_of_messages_and_images(vision, config) -> None:
    model, processor = vision
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {"messages": List({"role": Value("string"), "content": List(part)}), "images": List(ImageFeature())}
    )
    asked = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": [{"type": "text", "text": f"red {shade}"}]},
            ],
            "images": [Image.new("RGB", (8, 8), (shade, 0, 0))],
        }
        for shade in range(6)
    ]
    data = Dataset.from_list(rows, features=features)
    trainer = SFTTrainer(
        model=model,
        args=config(remove_unused_columns=False, gradient_checkpointing_kwargs={"use_reentrant": False}),
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        dataset_text_field="text",  # needed by TRL, and not used
        tokenizer=processor.tokenizer,
        data_collator=of_images(processor, lambda example: (example["messages"], example["images"][0])),
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
