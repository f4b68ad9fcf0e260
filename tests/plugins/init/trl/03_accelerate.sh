accelerate launch --config_file fsdp.yaml --num_processes 8 examples/scripts/sft.py \
  --config 01_sft_lora.yaml --lora_target_modules q_proj v_proj --load_in_4bit \
  --assistant_only_loss True --seed=7 --dtype bfloat16 --attn_implementation flash_attention_2
