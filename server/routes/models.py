"""``/v1/models``, ``/tokenize``, ``/detokenize``: what is served, and its tokenizer."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from octavo.server.protocol import DetokenizeRequest, TokenizeRequest
from octavo.server.responses import ModelCard, ModelList, Text, Tokens, json_response
from octavo.server.service import Service
from octavo.server.strict_json import StrictJsonRoute


def models_router(service: Service) -> APIRouter:
    """The routes about the model itself."""
    router = APIRouter(route_class=StrictJsonRoute)

    def card() -> ModelCard:
        # Unknown until the engine has sized its pool; a restarting engine keeps its last word.
        limit = service.engine_info().max_model_len if service.ready else None
        return ModelCard(service.model_name, service.created, limit)

    @router.get("/v1/models")
    async def list_models() -> Response:
        """The one model of this server."""
        return json_response(ModelList([card()]))

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        """One model by name."""
        service.check_model(name)
        return json_response(card())

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a prompt, or of a conversation."""
        service.check_model(body.model)
        ids = await service.encode_either(
            body, add_special_tokens=body.add_special_tokens, add_generation_prompt=body.add_generation_prompt
        )
        return json_response(Tokens(len(ids), service.engine_info().max_model_len, ids))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Text of token ids."""
        service.check_model(body.model)
        ids = await service.encode_prompt(body.tokens, param="tokens")
        return json_response(Text(await service.decode(ids, body.skip_special_tokens)))

    return router
