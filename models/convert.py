"""Turns a GGUF file, or a folder without ``tokenizer.json``, into the files that Octavo reads.

Run as ``python -m octavo.models.convert SOURCE TARGET``, in a process of its own, because it loads torch and
transformers and its caller may be the HTTP process, which does neither. `convert` starts that process.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import WeightsError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

# Tokens that end a turn or a text, in the spellings of the families that Octavo runs. A GGUF file names only one of
# them as its end; llama.cpp stops at all of these, and so must we, or a chat runs on into the next turn.
END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
)

# `tokenizer.ggml.pre` of the vocabularies that were trained with every digit apart. transformers reads these files
# with GPT-2's rule alone, which differs wherever white space meets a digit: "\n\n1" must be two tokens, not three.
DIGIT_SPLITTERS = frozenset({"smollm", "minerva-7b"})


# Special tokens as transformers calls them → as GGUF does.
SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
CONTROL = 3  # of `tokenizer.ggml.token_type`


def convert(source: Path, target: Path) -> None:
    """Converts in a child process.

    Args:
        source: A GGUF file, converted whole; or a model folder, of which only the tokenizer is converted.
        target: An existing folder for the results.

    Raises:
        WeightsError: transformers could not read the source; carries its reason.
    """
    command = [sys.executable, "-m", "octavo.models.convert", str(source), str(target)]
    outcome = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["the converter ended without a word"])[-1]
        raise WeightsError(f"cannot convert {source}: {reason}")


def convert_gguf(source: Path, target: Path) -> None:
    """Writes config, bfloat16 safetensors, tokenizer and generation config of a GGUF file; loads torch."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # These take seconds, and transformers calls them anew for the config, the tokenizer, the weights, every module.
    for slow in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, slow, functools.cache(getattr(gguf, slow)))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    reader = gguf.GGUFReader(str(source))
    amend_tokenizer(tokenizer, reader)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.eos_token_id = end_token_ids(reader)
    model.save_pretrained(target)
    save_tokenizer(tokenizer, target)


def convert_tokenizer(source: Path, target: Path) -> None:
    """Writes ``tokenizer.json`` for a folder whose tokenizer has another format."""
    from transformers import AutoTokenizer

    save_tokenizer(AutoTokenizer.from_pretrained(source), target)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Saves the tokenizer with its chat template inside ``tokenizer_config.json``."""
    tokenizer.save_pretrained(target, save_jinja_files=False)


def amend_tokenizer(tokenizer: PreTrainedTokenizerBase, reader: GGUFReader) -> None:
    """Makes a tokenizer say what its GGUF file says, where some versions of transformers say something else."""
    from tokenizers import decoders, pre_tokenizers

    tokens = _field(reader, "tokens")
    for role, key in SPECIAL_TOKENS.items():
        if (token_id := _field(reader, key)) is not None:
            setattr(tokenizer, role, tokens[token_id])
    backend = tokenizer.backend_tokenizer
    if _field(reader, "model") == "gpt2":
        backend.decoder = decoders.ByteLevel()
    if _field(reader, "pre") in DIGIT_SPLITTERS:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def end_token_ids(reader: GGUFReader) -> list[int]:
    """Ids of every token that ends a turn or a text, the file's own end token first."""
    tokens, kinds, own = (_field(reader, key) for key in ("tokens", "token_type", "eos_token_id"))
    control = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds or (), strict=False)) if kind == CONTROL}
    named = [control[token] for token in END_TOKENS if token in control]
    return list(dict.fromkeys(named if own is None else [own, *named]))


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    return None if field is None else field.contents()


def main(source: str, target: str) -> int:
    """Converts in this process; the last line on stderr is the reason of a failure."""
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        step = convert_tokenizer if Path(source).is_dir() else convert_gguf
        step(Path(source), Path(target))
    except Exception as error:  # whatever a strange file provokes, the parent reports it as one sentence
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
