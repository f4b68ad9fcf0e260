"""``trl.import_utils`` of 2024: which packages and devices there are."""

from transformers.integrations import is_wandb_available
from transformers.utils import (
    is_bitsandbytes_available,
    is_liger_kernel_available as is_liger_available,
    is_peft_available,
    is_rich_available,
    is_torch_npu_available as is_npu_available,
    is_torch_xpu_available as is_xpu_available,
)

__all__ = [
    "is_bitsandbytes_available",
    "is_liger_available",
    "is_npu_available",
    "is_peft_available",
    "is_rich_available",
    "is_wandb_available",
    "is_xpu_available",
]
