"""A real tokenizer in miniature: byte-level BPE with a ChatML template, as SmolLM's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog. It doesn't stop, however long it runs!",
    "Größe, naïveté, señor — “quotes” … 你好，世界。こんにちは 🙂👩‍👩‍👧 привет שלום",
    "def f(x):\n    return x  # indented\n\n\t\tdone   three spaces",
]

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('an assistant cannot begin') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS_ID = 2


def byte_level() -> tokenizers.Tokenizer:
    """Trained on `TEXT`; special tokens have the lowest ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL_TOKENS
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer | None = None, config: Any = CONFIG) -> Path:
    """Writes the tokenizer's files as a model folder has them."""
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
