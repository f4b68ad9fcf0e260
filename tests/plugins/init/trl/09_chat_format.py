from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, setup_chat_format

model = AutoModelForCausalLM.from_pretrained("model", torch_dtype="auto", attn_implementation="eager", revision="main")
tokenizer = AutoTokenizer.from_pretrained("plain")
model, tokenizer = setup_chat_format(model, tokenizer)
config = LoraConfig(
    r=8,
    lora_alpha=32,
    target_modules="all-linear",
    modules_to_save=["embed_tokens", "lm_head"],
    init_lora_weights="pissa",
    use_dora=True,
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    args=SFTConfig(
        output_dir="out/chat",
        max_length=128,
        gradient_checkpointing=False,
        assistant_only_loss=True,
        hub_model_id="someone/chat",
        save_strategy="no",
        dataset_num_proc=4,
        pad_to_multiple_of=8,
    ),
    train_dataset=load_dataset("json", data_files="chat.jsonl", split="train[:50%]"),
    peft_config=config,
)
