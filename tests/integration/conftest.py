"""Servers and reference outputs that several integration tests share. All need the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompts import PROMPTS, Prompt
from serving import Server, serve

from octavo.config import EngineConfig
from octavo.engine.prepare import prepare_model
from octavo.engine.tokenizer import Tokenizer

OUTPUT_TOKENS = 24


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The default model, fetched and converted on first use."""
    return prepare_model(EngineConfig()).folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer(model_folder)


@pytest.fixture(scope="session")
def expected(model_folder: Path, tokenizer: Tokenizer) -> dict[Prompt, list[int]]:
    """What transformers generates greedily in float32, prompt by prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    outputs = {}
    for prompt in PROMPTS:
        ids = torch.tensor([prompt.encode(tokenizer)])
        with torch.inference_mode():
            generated = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT_TOKENS, do_sample=False
            )
        outputs[prompt] = generated[0, ids.shape[1] :].tolist()
    return outputs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a fixed, small pool, in float32: there equal requests get equal answers in any company."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serve("--num-blocks", "1024", "--dtype", "float32", log=log) as running:
        yield running
