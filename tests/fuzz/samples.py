"""What is mutated: one small model with its processor, saved once in each process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

import vilt_fast
from vilt_fast.processing.processor import ViltProcessor
from vilt_fast.processing.text import BertTokenizer
from vilt_fast.processing.vilt import ViltImageProcessor
from vilt_fast.processing.vit import ViTImageProcessor

_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] what colour is the cat ? a b ##a ##b ##s red dog".split()


def config() -> vilt_fast.ViltConfig:
    """Sizes of the model."""
    return vilt_fast.ViltConfig(
        vocab_size=30,
        max_position_embeddings=12,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "yes", 1: "no", 2: "red"},
    )


def model(seed: int = 0) -> torch.nn.Module:
    """The model with weights of a seed."""
    torch.manual_seed(seed)
    return vilt_fast.ViltForQuestionAnswering(config()).eval()


@cache
def saved_model() -> Path:
    """A directory with the model's files and its processor's."""
    root = Path(tempfile.mkdtemp(prefix="vilt-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    model().save_pretrained(root / "model")
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(_WORDS)}, model_max_length=12)
    ViltProcessor(ViltImageProcessor(size=32, size_divisor=16), tokenizer).save_pretrained(root / "model")
    return root / "model"


def vit(seed: int = 0) -> vilt_fast.ViTForImageClassification:
    """A small ViT with weights of a seed."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = vilt_fast.ViTConfig(**sizes, image_size=32, patch_size=16, id2label={0: "cat", 1: "dog", 2: "other"})
    return vilt_fast.ViTForImageClassification(config).eval()


@cache
def saved_vit() -> Path:
    """A directory with the files of the small ViT and its processor's."""
    folder = saved_model().parent / "vit"
    vit().save_pretrained(folder)
    ViTImageProcessor(size=32).save_pretrained(folder)
    return folder


def visual_bert(seed: int = 0) -> vilt_fast.VisualBertForQuestionAnswering:
    """A small VisualBERT with weights of a seed."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {0: "yes", 1: "no", 2: "red"}
    config = vilt_fast.VisualBertConfig(
        **sizes, vocab_size=30, max_position_embeddings=12, visual_embedding_dim=8, id2label=labels
    )
    return vilt_fast.VisualBertForQuestionAnswering(config).eval()


@cache
def saved_visual_bert() -> Path:
    """A directory with the files of the small VisualBERT."""
    folder = saved_model().parent / "visual_bert"
    visual_bert().save_pretrained(folder)
    return folder
