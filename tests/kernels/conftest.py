"""Without a GPU the Triton kernels run in Triton's interpreter, which proves their arithmetic in fp32 and fp16."""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides at import, for its own library too.
    assert "triton" not in sys.modules, "set TRITON_INTERPRET=1 for this session: something has imported triton already"
    os.environ["TRITON_INTERPRET"] = "1"

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each set of kernels that is compared with the reference."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(needs_gpu)
