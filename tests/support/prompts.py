"""Twenty varied prompts: short, long, multi-turn, multilingual, code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.engine.tokenizer import Tokenizer

_STORY = (
    "The lighthouse keeper counted the ships that passed in the fog, one for every bell he heard, and wrote their "
    "number in a book that nobody else had ever opened. In the winter of that year the bell rang forty times in one "
    "night, and in the morning there was no ship to be seen on the whole of the grey and quiet sea. "
)


@dataclass(frozen=True)
class Prompt:
    """A plain text, or a conversation as (role, content) pairs."""

    name: str
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form."""
        return [{"role": role, "content": content} for role, content in self.turns]

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The token ids that the server must arrive at."""
        return tokenizer.encode_chat(self.messages) if self.turns else tokenizer.encode(self.text)


PROMPTS = (
    Prompt("one word", "Hello"),
    Prompt("capital", "The capital of France is"),
    Prompt("counting", "one, two, three, four,"),
    Prompt("alphabet", "A B C D E F G"),
    Prompt("list", "Three primary colours:\n1."),
    Prompt("python", "def fibonacci(n):\n    "),
    Prompt("json", '{"name": "Alice", "age": 30, "city":'),
    Prompt("sql", "SELECT name, COUNT(*) FROM orders WHERE"),
    Prompt("html", "<html>\n<head>\n<title>"),
    Prompt("french", "Il était une fois, dans un petit village,"),
    Prompt("german", "Die Hauptstadt von Deutschland ist"),
    Prompt("spanish", "Había una vez una niña que"),
    Prompt("emoji", "I love pizza 🍕 and"),
    Prompt("japanese", "日本の首都は"),
    Prompt("long", _STORY * 2 + "What the keeper did next was"),
    Prompt("longer", _STORY * 5 + "In the end"),
    Prompt("question", turns=(("user", "What is the capital of France?"),)),
    Prompt("system", turns=(("system", "You answer in one short sentence."), ("user", "Why is the sky blue?"))),
    Prompt(
        "two turns",
        turns=(
            ("user", "My name is Ada and I like machines."),
            ("assistant", "Nice to meet you, Ada! What kind of machines do you like?"),
            ("user", "What did I say my name was?"),
        ),
    ),
    Prompt(
        "three turns",
        turns=(
            ("user", "Give me a fruit."),
            ("assistant", "Apple."),
            ("user", "Another one."),
            ("assistant", "Banana."),
            ("user", "And a vegetable."),
        ),
    ),
)
