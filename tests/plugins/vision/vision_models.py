"""Tiny image-text models with their processors, and images, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.testing import tiny_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

#: A chat template like LLaVA's, which takes contents in parts and puts images before the text of a message.
IMAGES_FIRST = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: A chat template like Qwen's, which writes the parts of a content in their order.
IN_PLACE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LANGUAGE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LANGUAGE |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
_LANGUAGE |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TOWER |= {"image_size": 28, "patch_size": 14}
_IN_PLACE_TOKENS = ("<|im_start|>", "<|im_end|>")


def tiny_vision_model(kind: str = "llava", *, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """An image-text model with random weights, and its processor.

    Args:
        kind: ``llava`` (each image has the same number of tokens), ``qwen2_vl`` (the number depends on the image's
            size), or ``idefics3`` (images are cut into tiles, as in SmolVLM).
        seed: seed of the weights.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"llava": _llava, "qwen2_vl": _qwen2_vl, "idefics3": _idefics3}[kind]()


def drawn_image(colour: str, size: tuple[int, int] = (40, 30), shape: str = "square") -> Image:
    """An image of a coloured ``square`` or ``circle`` on white."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, "white")
    box = (size[0] // 8, size[1] // 8, size[0] - size[0] // 8, size[1] - size[1] // 8)
    draw = ImageDraw.Draw(image)
    (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=colour)
    return image


def _tokenizer(*special: str) -> Any:
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if "<|im_end|>" in special:
        tokenizer.eos_token = "<|im_end|>"  # as the template ends answers
    return tokenizer


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer("<image>")
    images = image_processor("clip", size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token of CLIP, which the strategy drops
        chat_template=IMAGES_FIRST.replace("IMAGE", "<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def _qwen2_vl() -> Any:
    from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    class ImagesQwen2VLProcessor(Qwen2VLProcessor):
        """Without the video processor, which needs torchvision."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    AutoProcessor.register(Qwen2VLConfig, ImagesQwen2VLProcessor, exist_ok=True)
    pad, video, start, end = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
    tokenizer = _tokenizer(*_IN_PLACE_TOKENS, pad, video, start, end)
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    ids = {"image": pad, "video": video, "vision_start": start, "vision_end": end}
    config = Qwen2VLConfig(
        text_config={"vocab_size": len(tokenizer), **_LANGUAGE, "rope_parameters": sections},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    images = image_processor("qwen2_vl", size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28})
    template = IN_PLACE.replace("IMAGE", f"{start}{pad}{end}")
    return Qwen2VLForConditionalGeneration(config), ImagesQwen2VLProcessor(images, tokenizer, template)


def _idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    tokenizer = _tokenizer(*_IN_PLACE_TOKENS, *special)
    images = image_processor("idefics3", size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    config = Idefics3Config(
        vision_config=_TOWER,
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=2,
        scale_factor=2,
    )
    template = IN_PLACE.replace("IMAGE", "<image>")
    processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


def image_processor(kind: str, **options: Any) -> Any:
    """The image processor of a model type that works with Pillow alone, without torchvision.

    Args:
        kind: a model type of transformers, such as ``clip``.
        options: arguments of the processor.
    """
    import importlib

    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    name = next(name for name in module.__all__ if name.endswith("ImageProcessorPil"))
    return getattr(module, name)(**options)
