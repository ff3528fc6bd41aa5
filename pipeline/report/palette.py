"""Colours of figures and pages: after Okabe and Ito 2008, told apart by people with any colour vision.

Figures are drawn in marker colours that nothing else uses. In a page they become CSS variables, so that one figure
serves light, dark and print; in a file of its own they become the light colours.
"""

from collections.abc import Mapping
from typing import Final

from pipeline.names import START, Arm

INK: Final = "#010101"  # text and axes
MUTED: Final = "#020202"  # secondary text
GRID: Final = "#030303"  # grid lines
TARGET: Final = "#040404"  # thresholds
GOOD: Final = "#050505"
BAD: Final = "#060606"
OTHER: Final = "#070707"
BASELINE: Final = "#080808"
PRETRAINED: Final = "#090909"
BASELINE_CONTROL: Final = "#0a0a0a"
PRETRAINED_CONTROL: Final = "#0b0b0b"

VARIABLES: Final[Mapping[str, str]] = {
    INK: "ink", MUTED: "muted", GRID: "grid", TARGET: "target", GOOD: "good", BAD: "bad", OTHER: "other",
    BASELINE: "arm-scratch", PRETRAINED: "arm-pretrained",
    BASELINE_CONTROL: "arm-scratch-lr0", PRETRAINED_CONTROL: "arm-pretrained-lr0",
}  # fmt: skip

LIGHT: Final[Mapping[str, str]] = {
    "ink": "#1b1f24", "muted": "#57606a", "grid": "#d8dee4", "target": "#6e4c9e", "good": "#00734f", "bad": "#b3401a",
    "other": "#9aa3ad", "arm-scratch": "#b84a08", "arm-pretrained": "#0068a8",
    "arm-scratch-lr0": "#8a6d5c", "arm-pretrained-lr0": "#5f7d92",
    "paper": "#ffffff", "card": "#f6f8fa", "line": "#d0d7de", "link": "#0550ae",
}  # fmt: skip

DARK: Final[Mapping[str, str]] = {
    "ink": "#e6edf3", "muted": "#9da7b3", "grid": "#30363d", "target": "#c9a6f2", "good": "#3fcf9c", "bad": "#ff8f6b",
    "other": "#7d8590", "arm-scratch": "#ff9d4d", "arm-pretrained": "#5cb8f5",
    "arm-scratch-lr0": "#b89a87", "arm-pretrained-lr0": "#8fb0c6",
    "paper": "#0d1117", "card": "#161b22", "line": "#30363d", "link": "#79c0ff",
}  # fmt: skip

ARM_COLOURS: Final = {
    START: PRETRAINED_CONTROL,
    Arm.SCRATCH: BASELINE,
    Arm.PRETRAINED: PRETRAINED,
    Arm.SCRATCH_LR0: BASELINE_CONTROL,
    Arm.PRETRAINED_LR0: PRETRAINED_CONTROL,
}
ARM_LABELS: Final = {
    Arm.SCRATCH: "from scratch",
    START: "clone at start",
    Arm.PRETRAINED: "pre-trained",
    Arm.SCRATCH_LR0: "from scratch, learning rate 0",
    Arm.PRETRAINED_LR0: "pre-trained, learning rate 0",
}


def for_page(svg: str) -> str:
    """Marker colours as CSS variables."""
    for marker, name in VARIABLES.items():
        svg = svg.replace(marker, f"var(--{name})")
    return svg


def for_file(svg: str) -> bytes:
    """Marker colours as the light colours, on white."""
    for marker, name in VARIABLES.items():
        svg = svg.replace(marker, LIGHT[name])
    return svg.replace("<svg ", '<svg style="background:#ffffff" ', 1).encode()
