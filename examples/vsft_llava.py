"""Fine-tune a vision model, in the style of TRL's script vsft_llava.py.

    python examples/vsft_llava.py \\
        --model_name_or_path llava-hf/llava-1.5-7b-hf \\
        --dataset_name HuggingFaceH4/llava-instruct-mix-vsft \\
        --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \\
        --output_dir runs/sft-llava --bf16 --torch_dtype bfloat16 --gradient_checkpointing \\
        --use_peft --lora_target_modules all-linear

docs/vision.md shows the same without a script, with the loss on the answers only.
"""

from __future__ import annotations

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftkit_trl import (
    ModelConfig,
    SFTConfig,
    SFTScriptArguments,
    SFTTrainer,
    TrlParser,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)


def load(model_config: ModelConfig):
    """Load the processor and the model."""
    dtype = model_config.torch_dtype
    quantization = get_quantization_config(model_config)
    options = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": dtype if dtype in (None, "auto") else getattr(torch, dtype),
        "quantization_config": quantization,
        "device_map": get_kbit_device_map() if quantization is not None else None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    trust = model_config.trust_remote_code
    name = model_config.model_name_or_path
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust)
    return processor, AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=trust, **options)


def make_collator(processor):
    """Make batches of conversations (``messages``) with their ``images``; all of the text is trained."""
    untrained = [processor.tokenizer.pad_token_id, processor.tokenizer.convert_tokens_to_ids(processor.image_token)]

    def collate(examples):
        texts = [processor.apply_chat_template(example["messages"], tokenize=False) for example in examples]
        images = [example["images"] for example in examples]
        batch = processor(text=texts, images=images, return_tensors="pt", padding=True)
        labels = batch["input_ids"].clone()
        labels[torch.isin(labels, torch.tensor(untrained))] = -100
        batch["labels"] = labels
        return batch

    return collate


def main() -> None:
    parser = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig))
    script, args, model_config = parser.parse_args_and_config()
    args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    args.remove_unused_columns = False  # the collator reads messages and images
    args.dataset_kwargs = {"skip_prepare_dataset": True}

    processor, model = load(model_config)
    dataset = load_dataset(script.dataset_name)
    evaluates = args.eval_strategy != "no"
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=make_collator(processor),
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=dataset[script.dataset_test_split] if evaluates else None,
        tokenizer=processor,
        peft_config=get_peft_config(model_config),
    )
    trainer.train()
    trainer.save_model(args.output_dir)  # the processor too
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    main()
