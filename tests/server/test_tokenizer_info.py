"""``/tokenizer_info``: told only where the operator said so."""

from __future__ import annotations

import httpx
import pytest
from tiny_tokenizer import CHATML

from octavo.config import ServerConfig


async def test_by_default_there_is_none(http: httpx.AsyncClient) -> None:
    assert (await http.get("/tokenizer_info")).status_code == 404


@pytest.mark.parametrize("config", [ServerConfig(tokenizer_info=True, allowed_hosts=("octavo",))])
async def test_what_is_told(http: httpx.AsyncClient) -> None:
    assert (await http.get("/tokenizer_info")).json() == {
        "tokenizer_class": None,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
        "vocab_size": 512,
        "max_model_len": 256,
    }
