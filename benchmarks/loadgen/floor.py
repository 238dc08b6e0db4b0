"""The least time that a load can take on this machine, one step after another.

    prompts       operations of all their products, at the rate of large products
    each decode   the weights and the running sequences' K and V, at the rate at which memory is read;
                  or its products, if those take longer

What sequences share is computed and read once. A server that computed prompts while it reads weights for decodes could
be faster; none does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

from loadgen.load import RequestLoad
from octavo.models.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates per second."""

    read_bytes: float
    operations: float

    @classmethod
    def measured(cls) -> Machine | None:
        """As it is now; None if that cannot be measured."""
        # -P: what the working folder holds is not importable by its name.
        command = [sys.executable, "-P", "-m", "octavo.engine.machine"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        rates = None if done.returncode else json.loads(done.stdout)
        # Where a processor has no instructions for bfloat16, products in it can be as fast as in float32.
        return rates and cls(rates["read_bytes"], max(rates["operations"], rates["float32_operations"]))


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What a model asks for, in bfloat16.

    Attributes:
        layer_weights: Numbers in the layers' matrices. head_weights: in that of the output layer.
        q_size: Numbers of all query heads of a token. kv_bytes: of a token, in all layers.
    """

    layer_weights: int
    head_weights: int
    num_layers: int
    q_size: int
    kv_bytes: int

    @classmethod
    def of(cls, folder: Path) -> ModelWork:
        """Of the model in a folder."""
        shape = ModelShape.read(folder)
        matrices = {name: size for name, size in shape.parameter_shapes().items() if len(size) == 2}
        layers = sum(prod(size) for name, size in matrices.items() if ".layers." in name)
        return cls(
            layer_weights=layers,
            head_weights=shape.vocab_size * shape.hidden_size,
            num_layers=shape.num_layers,
            q_size=shape.q_size,
            kv_bytes=shape.kv_bytes_per_token(2 * shape.head_dim),
        )

    def prompt_operations(self, tokens: int, cached: int = 0) -> float:
        """Of a prompt's tokens after so many that are cached; only the last one's logits are needed."""
        products = 2 * (tokens * self.layer_weights + self.head_weights)
        return products + self.num_layers * 4 * self.q_size * (tokens * cached + tokens**2 / 2)

    def decode_seconds(self, machine: Machine, sequences: int, tokens_in_cache: float) -> float:
        """Of a step that gives each sequence a token."""
        weights = self.layer_weights + self.head_weights
        read = (2 * weights + tokens_in_cache * self.kv_bytes) / machine.read_bytes
        return max(read, 2 * weights * sequences / machine.operations)


def least_seconds(load: RequestLoad, model: ModelWork, machine: Machine) -> float:
    """Of a load in a closed loop."""
    own, shared, outputs = load.prompt_tokens, load.shared_prefix_tokens, load.output_tokens
    operations = load.requests * model.prompt_operations(own, shared)
    if shared:
        operations += model.prompt_operations(shared)
    at_once = min(load.concurrency, load.requests)
    # A request's first token comes from its prompt.
    steps = load.requests * (outputs - 1) / at_once
    in_cache = shared + at_once * (own + outputs / 2)
    return operations / machine.operations + steps * model.decode_seconds(machine, at_once, in_cache)
