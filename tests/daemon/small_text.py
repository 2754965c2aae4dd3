"""A text model so small that training it takes a moment, and texts that it can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel


def pretrained(folder: Path, width: int, blocks: int) -> Path:
    """The folder with a pretrained encoder: a tiny BERT over the words w0 to w39."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=160,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def texts_of(labels: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    texts = np.empty(len(labels), dtype=object)
    for i, label in enumerate(labels):
        words = generator.integers(12 * label, 12 * label + 12, generator.integers(3, 8))
        texts[i] = " ".join(f"w{word}" for word in words)
    return texts
