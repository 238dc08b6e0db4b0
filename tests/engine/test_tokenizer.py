"""Tokenizer: files of a model folder, beginning-of-sequence tokens, chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tiny_tokenizer import CHATML, CONFIG, EOS_ID, SPECIAL_TOKENS, TEXT, byte_level, write_tokenizer
from tokenizers.processors import TemplateProcessing

from octavo.engine import chat_template
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError, ModelNotFoundError, SetupError

BOS_ID = 1
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path))


def with_template(folder: Path, template: str, **config: Any) -> Tokenizer:
    return Tokenizer(write_tokenizer(folder, config={**CONFIG, "chat_template": template, **config}))


def adding_bos() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS_ID)])
    return tokenizer


def test_there_and_back(tokenizer: Tokenizer) -> None:
    for text in TEXT:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_a_folder_declares(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS_ID, EOS_ID)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert (tokenizer.class_name, tokenizer.chat_template) == (None, CHATML)
    assert tokenizer.special_token_ids == {0, 1, 2}
    assert tokenizer.vocab_size == 1 + max(byte_level().get_vocab().values())
    assert tokenizer.has_token(tokenizer.vocab_size - 1)
    assert not tokenizer.has_token(tokenizer.vocab_size)
    assert tokenizer.longest_token >= len("<|endoftext|>")


def test_special_tokens_in_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    assert EOS_ID in ids
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


@pytest.mark.parametrize(("added", "declared", "expected"), [
    (True, None, True), (True, True, True), (True, False, False),
    (False, None, False), (False, True, True), (False, False, False),
])  # fmt: skip
def test_a_beginning_of_sequence_token_is_added_once(
    tmp_path: Path, added: bool, declared: bool | None, expected: bool
) -> None:
    config = CONFIG if declared is None else {**CONFIG, "add_bos_token": declared}
    tokenizer = Tokenizer(write_tokenizer(tmp_path, adding_bos() if added else byte_level(), config))
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.encode("Hello") == ([BOS_ID, *plain] if expected else plain)


def test_truncation_and_padding_of_the_training_run_are_dropped(tmp_path: Path) -> None:
    raw = byte_level()
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    text = TEXT[0]
    assert Tokenizer(write_tokenizer(tmp_path, raw)).encode(text) == byte_level().encode(text).ids


def test_only_tokenizer_json_is_needed(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_token_id is None
    with pytest.raises(InvalidRequestError, match="no chat template; use /v1/completions"):
        tokenizer.render_chat(HELLO)


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SetupError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path, config=[])
    with pytest.raises(SetupError, match="must hold a JSON object"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(SetupError, match="is not JSON"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path, config={"chat_template": "\n{% for %}"})
    with pytest.raises(SetupError, match="does not compile: line 2"):
        Tokenizer(tmp_path)


def test_chat_is_rendered_and_encoded_without_a_second_bos(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, adding_bos()))
    assert tokenizer.render_chat(HELLO) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render_chat(HELLO, add_generation_prompt=False).endswith("<|im_end|>\n")
    assert tokenizer.encode_chat(HELLO)[:2] != [BOS_ID, BOS_ID]


def test_a_template_may_come_in_a_list_or_in_a_file(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    write_tokenizer(tmp_path, config={**CONFIG, "chat_template": templates})
    assert Tokenizer(tmp_path).render_chat(HELLO).startswith("<|im_start|>user")
    (tmp_path / "chat_template.jinja").write_text("from a file: {{ messages[0].content }}")
    assert Tokenizer(tmp_path).render_chat(HELLO) == "from a file: Hello"


def test_templates_see_what_transformers_shows_them(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{{ eos_token }}{% if tools is none and documents is none %}!{% endif %}\n"
        "{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}\n"
        "    {% generation %}{{ messages[0] | tojson }}{% endgeneration %}\n"
        "{{ dict(a='<é>') | tojson(indent=1) }}{{ strftime_now('%%') }}{{ thinking }}"
    )
    tokenizer = with_template(tmp_path, template)
    assert tokenizer.render_chat([{"role": "é", "content": "<&>"}], thinking=True) == (
        '<|im_start|><|im_end|>!01{"role": "é", "content": "<&>"}{\n "a": "<é>"\n}%True'
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].content + 5 }}", "fails on these messages"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ dict.__subclasses__() }}", "refuses these messages"),
        ("{% for n in range(10**9) %}{% endfor %}", "messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "messages"),
    ],
)
def test_templates_that_fail_are_the_requests_fault(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        with_template(tmp_path, template).render_chat(HELLO)


def test_templates_are_bounded_in_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_template(tmp_path, "{% for n in range(90000) %}{{ messages[0].content }}{% endfor %}")
    with monkeypatch.context() as patch:
        patch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
        with pytest.raises(InvalidRequestError, match="longer than 1000 characters"):
            tokenizer.render_chat(HELLO)
    monkeypatch.setattr(chat_template, "MAX_RENDER_SECONDS", -1.0)
    with pytest.raises(InvalidRequestError, match="seconds"):
        tokenizer.render_chat(HELLO)


@pytest.mark.model
def test_the_real_tokenizer_agrees_with_its_own_files() -> None:
    found = next((Path.home() / ".cache" / "octavo").rglob("tokenizer_config.json"), None)
    if found is None:
        pytest.skip("the default model is not in the cache")
    tokenizer = Tokenizer(found.parent)
    for text in TEXT:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_chat(HELLO)[0] == tokenizer.encode("<|im_start|>")[0]
    assert json.loads(found.read_text())["eos_token"] == tokenizer.decode([tokenizer.eos_token_id or 0], False)


def test_the_lowest_ids_are_special(tokenizer: Tokenizer) -> None:
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[0], [1], [2]]
