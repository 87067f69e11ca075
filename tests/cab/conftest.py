"""Makes the helpers of these tests importable by name, here and in child processes."""

from __future__ import annotations

import sys
from pathlib import Path

IMPORTABLE = str(Path(__file__).parent / "measure" / "importable")
if IMPORTABLE not in sys.path:
    sys.path.insert(0, IMPORTABLE)
