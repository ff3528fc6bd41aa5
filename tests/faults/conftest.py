"""The disk that fails on purpose, shared with the benchmark that fails every single call."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("benchmarks", "tests/tracking"):
    sys.path.append(str(ROOT / folder))
