"""IncrementalDetokenizer: streamed text equals the full decode; stop strings cut at the same character always."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tiny_tokenizer import TEXT
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.tokenizer import Tokenizer

SEQUENCES = 20_000
STOP_CASES = 5_000


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>", "<|é|>"]
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("[tool é]", special=False), AddedToken("  ", special=False)])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: SentencePiece BPE whose unknown characters become byte tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "▁the", "▁dog", "s", "é", "你", "�", "ing", ".", "▁▁▁x", "<0x41"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    vocab = [("<unk>", 0.0), ("▁", -1.0), ("▁▁", -1.0), ("▁the", -1.0), ("▁do", -1.0), ("g", -1.0), ("▁a▁b", -1.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, 0, False))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    words = ["[UNK]", "the", "dog", "##s", "##'t", "do", "n't", ".", ",", "'", "s", "##�"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


def without_decoder() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c d": 2}, unk_token="a"))


KINDS = {f.__name__: f for f in (byte_level, byte_fallback, metaspace, word_piece, without_decoder)}


def saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    return Tokenizer(folder)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return saved(KINDS[request.param](), tmp_path)


@pytest.fixture
def bytes_tokenizer(tmp_path: Path) -> Tokenizer:
    return saved(byte_level(), tmp_path)


def chunks_of(ids: list[int], random_: random.Random) -> list[list[int]]:
    cuts = sorted(random_.randrange(len(ids) + 1) for _ in range(random_.randrange(len(ids) + 1)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def streamed(detokenizer: IncrementalDetokenizer, chunks: list[list[int]]) -> str:
    return "".join(detokenizer.push(chunk) for chunk in chunks) + detokenizer.flush()


def check_random_sequences(tokenizer: Tokenizer, count: int, longest: int = 40) -> None:
    random_ = random.Random(20240607)
    for _ in range(count):
        # A few ids beyond the vocabulary: models pad theirs.
        ids = random_.choices(range(tokenizer.vocab_size + 2), k=random_.randrange(1, longest))
        skip = random_.random() < 0.5
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
        assert streamed(detokenizer, chunks_of(ids, random_)) == tokenizer.decode(ids, skip), (ids, skip)
        assert detokenizer.num_tokens == len(ids)


def test_streamed_text_equals_the_full_decode(tokenizer: Tokenizer) -> None:
    check_random_sequences(tokenizer, SEQUENCES)


def test_streamed_text_equals_the_text_that_was_encoded(bytes_tokenizer: Tokenizer) -> None:
    for text in TEXT:
        ids = bytes_tokenizer.encode(text)
        assert streamed(IncrementalDetokenizer(bytes_tokenizer), [[id] for id in ids]) == text


def test_a_character_comes_out_only_when_it_is_whole(bytes_tokenizer: Tokenizer) -> None:
    by_bytes = {value: id for id, value in enumerate(bytes_tokenizer.token_bytes or ()) if len(value) == 1}
    ids = [by_bytes[bytes([byte])] for byte in "🙂".encode()]
    detokenizer = IncrementalDetokenizer(bytes_tokenizer)
    assert [detokenizer.push([id]) for id in ids] == ["", "", "", "🙂"]


def test_an_output_that_ends_inside_a_character_is_flushed(bytes_tokenizer: Tokenizer) -> None:
    by_bytes = {value: id for id, value in enumerate(bytes_tokenizer.token_bytes or ()) if len(value) == 1}
    ids = [by_bytes[bytes([byte])] for byte in "🙂".encode()[:3]]
    detokenizer = IncrementalDetokenizer(bytes_tokenizer)
    assert detokenizer.push(ids) == ""
    assert detokenizer.flush() == "�" == bytes_tokenizer.decode(ids)


def expected_cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The rule, read character by character: the first stop that is complete, the longest at that character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def test_stop_strings_cut_at_the_same_character_however_tokens_arrive(bytes_tokenizer: Tokenizer) -> None:
    random_ = random.Random(7)
    for _ in range(STOP_CASES):
        text = "".join(random_.choice("abc é🙂") for _ in range(random_.randrange(1, 30)))
        stops = ["".join(random_.choice("abc é🙂") for _ in range(random_.randrange(1, 5))) for _ in range(3)]
        include = random_.random() < 0.5
        detokenizer = IncrementalDetokenizer(bytes_tokenizer, stop=stops, include_stop_str_in_output=include)
        result = streamed(detokenizer, chunks_of(bytes_tokenizer.encode(text), random_))
        assert (result, detokenizer.stopped_by) == expected_cut(text, stops, include), (text, stops)


def test_text_that_could_become_a_stop_is_held_back_and_released(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(bytes_tokenizer, stop=["STOP"])
    assert detokenizer.push(bytes_tokenizer.encode("xST")) == "x"
    assert detokenizer.push(bytes_tokenizer.encode("ART S")) == "START "
    assert detokenizer.flush() == "S"


def test_tokens_after_the_stop_are_not_taken(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("aXb")
    detokenizer = IncrementalDetokenizer(bytes_tokenizer, stop=["X"])
    assert detokenizer.push(ids) == "a"
    assert (detokenizer.stopped_by, detokenizer.num_tokens) == ("X", 2)
    assert (detokenizer.push(ids), detokenizer.flush()) == ("", "")


def test_stop_strings_wait_for_min_tokens(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("XXaXb")
    assert len(ids) == 5
    detokenizer = IncrementalDetokenizer(bytes_tokenizer, stop=["X"], min_tokens=2)
    assert detokenizer.push(ids) == "XXa"


def test_a_long_run_of_broken_bytes_stays_cheap(bytes_tokenizer: Tokenizer) -> None:
    broken = (bytes_tokenizer.token_bytes or ()).index(b"\x80")
    detokenizer = IncrementalDetokenizer(bytes_tokenizer)
    assert streamed(detokenizer, [[broken]] * 20_000) == "�" * 20_000


@pytest.mark.model
def test_streamed_text_equals_the_full_decode_on_the_real_tokenizer() -> None:
    found = next((Path.home() / ".cache" / "octavo").rglob("tokenizer.json"), None)
    if found is None:
        pytest.skip("the default model is not in the cache")
    check_random_sequences(Tokenizer(found.parent), SEQUENCES, longest=200)
