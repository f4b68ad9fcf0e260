"""Models and batches on which memory is estimated."""

from __future__ import annotations

import pytest
import torch

from sftkit.testing import tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "head_dim": 16}


def model_of(architecture="llama", **options):
    sizes = {"n_embd": 64, "n_layer": 4} if architecture == "gpt2" else SIZES
    return tiny_model(architecture, vocab_size=1000, **(sizes | options)).train()


@pytest.fixture
def make_model():
    """Makes a model in training mode whose activations outweigh what tests allow as an error."""
    return model_of


@pytest.fixture
def batch():
    """Four rows of 256 tokens, of which half are trained."""
    ids = torch.randint(3, 900, (4, 256), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(256) < 128, -100, ids)
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.fixture
def packed_batch(batch):
    """The same rows, each of several documents."""
    positions = (torch.arange(256) % 100).expand(4, 256).contiguous()
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], "position_ids": positions}


@pytest.fixture
def with_lora():
    """Puts adapters on a model."""
    peft = pytest.importorskip("peft")

    def adapt(model, **options):
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options)
        return peft.get_peft_model(model, config).train()

    return adapt


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A saved model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model_of().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
