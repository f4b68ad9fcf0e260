"""``trl.extras`` of 2024, as far as supervised fine-tuning uses it."""
