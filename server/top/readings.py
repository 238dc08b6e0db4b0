"""A server's metrics as numbers by name and labels; what is not there is None, never an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Readings:
    """All samples of ``/metrics``.

    Attributes:
        samples: Name → (labels, value) of each sample.
    """

    samples: Mapping[str, list[tuple[Mapping[str, str], float]]]

    @classmethod
    def of(cls, text: str) -> Readings:
        """Reads Prometheus' text format.

        Raises:
            ValueError: It is none.
        """
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        except (KeyError, IndexError, TypeError) as error:  # how the parser meets some of what is no metrics
            raise ValueError(f"not in Prometheus' text format: {error}") from error
        return cls(samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of all samples of this name that have these labels; None if there are none."""
        found = [value for own, value in self.samples.get(name, ()) if labels.items() <= own.items()]
        return sum(found) if found else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same by the values of a label, in the order in which they are told."""
        found: dict[str, float] = {}
        for own, value in self.samples.get(name, ()):
            if label in own and labels.items() <= own.items():
                found[own[label]] = found.get(own[label], 0.0) + value
        return found

    def label(self, name: str, label: str) -> str | None:
        """A label's value in the first sample of this name."""
        return next((own[label] for own, _ in self.samples.get(name, ()) if label in own), None)
