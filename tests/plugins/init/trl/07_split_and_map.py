import os

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer


def to_text(row):
    return {"text": f"{row['q']} {row['a']}"}


def main():
    data = load_dataset("json", data_files="questions.jsonl", split="train").map(to_text)
    split = data.train_test_split(test_size=0.2, seed=42)
    options = dict(per_device_train_batch_size=2, learning_rate=1e-5)  # noqa: C408
    args = SFTConfig(
        output_dir=os.environ["OUT"],
        eval_strategy="epoch",
        packing=True,
        neftune_noise_alpha=5,
        completion_only_loss=False,
        bf16=True,
        **options,
    )
    trainer = SFTTrainer(
        model="model",
        args=args,
        train_dataset=split["train"],
        eval_dataset=split["test"],
        callbacks=[object()],
        formatting_func=to_text,
    )
    trainer.train(resume_from_checkpoint=True)


main()
