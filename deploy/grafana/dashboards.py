"""Writes Octavo's Grafana dashboards: ``python deploy/grafana/dashboards.py [FOLDER]``.

What it writes is committed in ``deploy/grafana/dashboards`` and a test compares the two; so change a dashboard's
module, run this, and commit both. It needs ``pip install 'octavo[dev]'``, for Grafana's own builders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import blocks
import latency
import overview
import tenants
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parent / "dashboards"


def main(folder: Path) -> None:
    """Writes every dashboard as a file of JSON into a folder."""
    for module in (overview, blocks, latency, tenants):
        text = json.dumps(module.build().build(), cls=JSONEncoder, indent=2, sort_keys=True)
        (folder / f"{module.__name__}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
