"""The tokenizer of a model folder: text to token ids and back, without torch and without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from octavo.engine.chat_template import ChatTemplate
from octavo.errors import InvalidRequestError, ModelNotFoundError, SetupError

# Names of chat templates, where a model has several.
_DEFAULT = "default"
_WITH_TOOLS = "tool_use"


class Tokenizer:
    """Reads ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` of a model folder.

    Every method may be called from several threads at once; long inputs are encoded without holding the
    interpreter lock.

    Attributes:
        vocab_size: One more than the largest token id.
        special_token_ids: Ids of control tokens, which ``skip_special_tokens`` leaves out of decoded text.
        added_tokens: Tokens outside the vocabulary that was trained, control tokens among them: text → id.
        bos_token_id, eos_token_id: What the model folder declares, or None.
        special_tokens: Texts of the special tokens that it gives names, such as ``eos_token``.
        class_name: The class by which transformers knows the tokenizer, or None.

    Raises:
        ModelNotFoundError: The folder has no ``tokenizer.json``.
        SetupError: A tokenizer file is malformed.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self._tokenizer = _load(folder / "tokenizer.json")
        config = _read_config(folder / "tokenizer_config.json")
        self.special_tokens = _special_tokens(config)
        self.class_name: str | None = config.get("tokenizer_class")
        added = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_token_ids = frozenset(id for id, token in added.items() if token.special)
        self.bos_token_id = self._id_of(self.special_tokens.get("bos_token"))
        self.eos_token_id = self._id_of(self.special_tokens.get("eos_token"))
        self._adds_bos: bool | None = config.get("add_bos_token")
        self.added_tokens: dict[str, int] = {token.content: id for id, token in added.items()}
        self._chat_templates = _chat_templates(folder, config, self.special_tokens)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any text; names of special tokens in it become those tokens.
            add_special_tokens: Add what the model wants around a prompt, usually a beginning-of-sequence token.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return self._with_bos_as_configured(ids) if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids. Ids that name no token are left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def bytes_of(self, id: int) -> bytes:
        """The bytes that a token stands for by itself; none if the id names no token."""
        if self.token_bytes is not None:
            return self.token_bytes[id] if id < len(self.token_bytes) else b""
        token = self._tokenizer.id_to_token(id) or ""
        if id in self.fallback_token_ids:
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()  # SentencePiece's mark for a blank

    def has_token(self, id: int) -> bool:
        """True if the id names a token. A model's vocabulary may be padded beyond its tokenizer's."""
        return self._tokenizer.id_to_token(id) is not None

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Renders a conversation with the model's chat template.

        Args:
            messages: Each with a ``role`` and a ``content``.
            add_generation_prompt: End with the opening of an assistant turn.
            **variables: Further names that the template may read.

        Returns:
            The text. It already contains the special tokens: encode it with ``add_special_tokens=False``.

        Raises:
            InvalidRequestError: The model has no chat template, or its template refuses these messages.
        """
        template = self._chat_templates.get(_WITH_TOOLS) if variables.get("tools") else None
        template = template or self._chat_templates.get(_DEFAULT)
        if template is None:
            raise InvalidRequestError("this model has no chat template; use /v1/completions with a plain prompt")
        return template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    @property
    def chat_template(self) -> str:
        """The source of the template that renders tools; empty if the model has none."""
        template = self._chat_templates.get(_WITH_TOOLS) or self._chat_templates.get(_DEFAULT)
        return template.source if template else ""

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Renders a conversation as `render_chat` does and returns its token ids."""
        text = self.render_chat(messages, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def longest_token(self) -> int:
        """Characters in the longest token, at least 1: a text of length L has at least L / longest_token tokens."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1) or 1

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...] | None:
        """The bytes that each token id stands for, or None where a token's text depends on its neighbours.

        Byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM and most since) decode token by token into bytes and
        read the whole as UTF-8; for those this table is all that decoding needs.
        """
        if self._decoder_kinds != ["ByteLevel"]:
            return None
        alphabet = _byte_level_alphabet()
        return tuple(_bytes_of(self._tokenizer.id_to_token(id) or "", alphabet) for id in range(self.vocab_size))

    @cached_property
    def fallback_token_ids(self) -> frozenset[int]:
        """Ids of tokens such as ``<0xE2>``, whose run is decoded as a whole once it has ended."""
        if "ByteFallback" not in self._decoder_kinds:
            return frozenset()
        ids = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(id for id in ids if id is not None)

    @cached_property
    def _decoder_kinds(self) -> list[str]:
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        parts = decoder.get("decoders", [decoder])
        return [part.get("type", "") for part in parts]

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def _with_bos_as_configured(self, ids: list[int]) -> list[int]:
        # tokenizer.json usually adds the token itself, but older folders leave it to tokenizer_config.json.
        if self.bos_token_id is None or self._adds_bos in (None, self._encoder_adds_bos):
            return ids
        return [self.bos_token_id, *ids] if self._adds_bos else ids[1:]

    @cached_property
    def _encoder_adds_bos(self) -> bool:
        ids: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return ids[:1] == [self.bos_token_id]


def _load(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelNotFoundError(f"{path.parent} has no tokenizer.json; Octavo needs the fast tokenizer's file")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise SetupError(f"{path} is not a tokenizer: {error}") from error
    # Some files carry the padding and truncation of their training run.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SetupError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like, each written as a string or as an object with a ``content``."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _chat_templates(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> dict[str, ChatTemplate]:
    """The model's templates by name; most have one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {_DEFAULT: ChatTemplate(path.read_text(encoding="utf-8"), special_tokens, origin=str(path))}
    sources = config.get("chat_template") or {}
    if isinstance(sources, list):
        sources = {entry.get("name"): entry.get("template") for entry in sources}
    elif isinstance(sources, str):
        sources = {_DEFAULT: sources}
    origin = str(folder / "tokenizer_config.json")
    known = {name: sources[name] for name in (_DEFAULT, _WITH_TOOLS) if sources.get(name)}
    return {name: ChatTemplate(source, special_tokens, origin=origin) for name, source in known.items()}


def _byte_level_alphabet() -> dict[str, int]:
    """The character that GPT-2's byte-level encoding writes for each byte, inverted.

    Printable Latin-1 characters stand for themselves; the other bytes take the code points from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(shifted)}


def _bytes_of(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        # An added token written as plain text.
        return token.encode()
