"""Well-known Python clients against a running server.

    octavo serve &
    python benchmarks/clients/python_clients.py            # in an environment with langchain-openai, litellm, openai

Each line is one thing that a client does; what fails is told with its error, and ends the script with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import litellm
import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"
ASKED = [{"role": "user", "content": QUESTION}]


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)
    country: str = Field(max_length=20)


@tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


class Checks:
    """What is done, by client."""

    def __init__(self, url: str, model: str, key: str) -> None:
        self.url, self.model, self.key = url, model, key
        self.chat = ChatOpenAI(base_url=url, api_key=key, model=model, temperature=0, max_tokens=48)
        self.lite: dict[str, Any] = {"model": f"openai/{model}", "api_base": url, "api_key": key, "max_tokens": 24}

    def langchain_invokes(self) -> object:
        return self.chat.invoke(QUESTION).content

    def langchain_streams(self) -> object:
        chunks = list(self.chat.stream(QUESTION))
        assert len(chunks) > 3
        return "".join(chunk.text for chunk in chunks)

    def langchain_batches(self) -> object:
        return [answer.content[:20] for answer in self.chat.batch([QUESTION, "Say hello."])]

    def langchain_completes(self) -> object:
        return OpenAI(base_url=self.url, api_key=self.key, model=self.model, max_tokens=8).invoke("Once upon a time")

    def langchain_gives_structured_output(self) -> object:
        asked = self.chat.with_structured_output(Place, method="json_schema")
        place = asked.invoke("Paris is in France. Which place is it?")
        assert isinstance(place, Place)
        return place

    def langchain_calls_tools(self) -> object:
        bound = self.chat.bind_tools([weather], tool_choice="weather")
        call = bound.invoke("What is the weather in Paris?").tool_calls[0]
        return weather.invoke(call).content

    def litellm_completes(self) -> object:
        return litellm.completion(messages=ASKED, **self.lite).choices[0].message.content

    def litellm_streams(self) -> object:
        chunks = list(litellm.completion(messages=ASKED, stream=True, **self.lite))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    async def openai_runs_many_at_once(self) -> object:
        client = openai.AsyncOpenAI(base_url=self.url, api_key=self.key)
        ask = client.chat.completions.create
        answers = await asyncio.gather(
            *(ask(model=self.model, messages=ASKED, max_tokens=8, seed=seed) for seed in range(24))
        )
        return f"{len(answers)} answers, {sum(answer.usage.completion_tokens for answer in answers)} tokens"

    def openai_parses(self) -> object:
        client = openai.OpenAI(base_url=self.url, api_key=self.key)
        parsed = client.chat.completions.parse(model=self.model, messages=ASKED, response_format=Place, max_tokens=64)
        return parsed.choices[0].message.parsed


def main() -> int:
    """Runs every check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    options = parser.parse_args()
    model = openai.OpenAI(base_url=options.url, api_key=options.api_key).models.list().data[0].id
    checks, failed = Checks(options.url, model, options.api_key), 0
    for name in [name for name in vars(Checks) if not name.startswith("_")]:
        check: Callable[[], object | Awaitable[object]] = getattr(checks, name)
        try:
            result = check()
            result = asyncio.run(result) if asyncio.iscoroutine(result) else result
            print(f"ok      {name.replace('_', ' '):40} {json.dumps(str(result))[:90]}")
        except Exception as error:
            failed += 1
            print(f"FAILED  {name.replace('_', ' '):40} {type(error).__name__}: {str(error)[:200]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
