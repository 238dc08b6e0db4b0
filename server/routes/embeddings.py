"""``/v1/embeddings``: a vector for each input."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.engine.messages import TOKEN_BYTES, AddRequest
from octavo.errors import InvalidRequestError
from octavo.server.auth import identity_of
from octavo.server.middleware import request_id_of
from octavo.server.prompt_only import compute_prompt, prompt_only
from octavo.server.protocol import EmbeddingRequest
from octavo.server.request_log import record_of
from octavo.server.responses import Embedding, EmbeddingList, EmbeddingUsage, json_response
from octavo.server.service import Service
from octavo.server.streaming import merge, unless_disconnected
from octavo.server.strict_json import StrictJsonRoute


def embeddings_router(service: Service) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Embeds one input or several."""
        service.check_model(body.model)
        service.note_ignored(body)
        _check_dimensions(body.dimensions, service.engine_info().hidden_size)
        size = sum(map(len, body.input))
        encoded = [await service.encode_prompt(one, param="input", size=size) for one in body.input]
        prompts, identity = service.truncated(body, encoded), identity_of(request)
        requests = service.requests(body, prompts, prompt_only(body.pooling), identity, param="input")
        tokens = record_of(request).prompt_tokens = sum(len(one.prompt) // TOKEN_BYTES for one in requests)
        work = _embed(service, body, requests, request_id_of(request))
        data = await unless_disconnected(request.receive, work)
        return json_response(EmbeddingList(data, service.model_name, EmbeddingUsage(tokens, tokens)))

    return router


def _check_dimensions(dimensions: int | None, most: int) -> None:
    if dimensions is not None and dimensions > most:
        raise InvalidRequestError(
            f"dimensions must be at most {most}, this model's hidden size, not {dimensions}", param="dimensions"
        )


async def _embed(
    service: Service, body: EmbeddingRequest, requests: Sequence[AddRequest], request_id: str
) -> list[msgspec.Raw]:
    """Each input's entry of the answer, encoded as soon as it is known: all at once would hold the event loop up."""
    # No more at a time than can run: the queue is everybody's.
    gate = asyncio.Semaphore(service.engine_info().max_num_seqs)
    entries = [msgspec.Raw()] * len(requests)
    with service.open_requests.entered(requests, [request_id]):
        async with aclosing(merge([_vector(service, request, gate) for request in requests])) as vectors:
            async for index, vector in vectors:
                entry = Embedding(index, _written(_shaped(vector, body), body.encoding_format))
                entries[index] = msgspec.Raw(msgspec.json.encode(entry))
    return entries


async def _vector(service: Service, request: AddRequest, gate: asyncio.Semaphore) -> AsyncGenerator[bytes, None]:
    async with gate:
        delta = await compute_prompt(service.client, request)
    assert delta.embedding is not None, "the engine has not pooled"
    yield delta.embedding


def _shaped(data: bytes, body: EmbeddingRequest) -> npt.NDArray[np.float32]:
    """A vector's first ``dimensions`` numbers, of length 1 unless the client wants them as they are."""
    vector = np.frombuffer(data, dtype="<f4")[: body.dimensions]
    # A vector of nothing but zeros has no direction, and stays as it is.
    length = float(np.linalg.norm(vector.astype(np.float64))) if body.normalize else 1.0
    return (vector / (length or 1.0)).astype("<f4")


def _written(vector: npt.NDArray[np.float32], encoding: str | None) -> Any:
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()
