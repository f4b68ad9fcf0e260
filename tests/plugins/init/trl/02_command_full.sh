#!/bin/bash
# full fine-tuning
MODEL=model
export WANDB_PROJECT=sft
CUDA_VISIBLE_DEVICES=0 python trl/scripts/sft.py \
    --model_name_or_path ${MODEL} \
    --dataset_name chats \
    --learning_rate 2.0e-5 \
    --num_train_epochs 1 \
    --packing \
    --eos_token '<|im_end|>' \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --eval_strategy no \
    --max_length 512 \
    --no_gradient_checkpointing \
    --lr_scheduler_type cosine --warmup_ratio 0.03 \
    --report_to wandb --output_dir out/${MODEL}-sft
