"""Octavo: an LLM serving system whose KV cache is kept in blocks.

>>> from octavo import LLM, SamplingParams
>>> llm = LLM()
>>> llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0].text
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.llm import LLM, Output, RequestOutput
    from octavo.scheduler.sampling import SamplingParams

__all__ = ["LLM", "Output", "RequestOutput", "SamplingParams", "__version__"]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "octavo.engine.llm",
    "Output": "octavo.engine.llm",
    "RequestOutput": "octavo.engine.llm",
    "SamplingParams": "octavo.scheduler.sampling",
}


def __getattr__(name: str) -> Any:
    # Public names are imported when they are first used: `import octavo` must not cost a second of torch.
    if name in _HOMES:
        # Before torch is loaded, or it has no effect.
        import_module("octavo.engine.threads").bound_spinning(os.environ)
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
