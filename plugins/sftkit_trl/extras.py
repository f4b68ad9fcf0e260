"""``trl.extras`` of 2024: known data formats, and packing as a data set."""

from sftkit_plugins.chatml.chat_format import FORMAT_MAPPING
from sftkit_plugins.packing.stream import ConstantLengthDataset
from sftkit_trl.formatting import get_formatting_func_from_dataset

__all__ = ["FORMAT_MAPPING", "ConstantLengthDataset", "get_formatting_func_from_dataset"]
