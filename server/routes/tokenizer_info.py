"""``/tokenizer_info``: what a client needs to render and count prompts by itself."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from octavo.server.responses import json_response
from octavo.server.service import Service


def tokenizer_info_router(service: Service) -> APIRouter:
    """The route that tells what the tokenizer is made of, chat template included."""
    router = APIRouter()

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """The tokenizer's class, special tokens by name, chat template and sizes."""
        tokenizer, info = service.tokenizer, service.engine_info()
        about = {
            "tokenizer_class": tokenizer.class_name,
            "chat_template": tokenizer.chat_template,
            "vocab_size": info.vocab_size,
            "max_model_len": info.max_model_len,
        }
        return json_response({**tokenizer.special_tokens, **about})

    return router
