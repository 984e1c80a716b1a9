"""Colours that the colour-blind can tell apart, and pictures of cells as PNG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

MISSING = 255  # the transparent index of a picture; a pattern lies beneath it

# Ten colours of viridis (van der Walt and Smith, 2015; CC0): lightness rises evenly.
_VIRIDIS = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)
# All light enough for dark text, and on a dark page dark enough for light text.
_ABOVE = ("#ffffff", "#fbe3bd", "#f5bd6b", "#e88a1a")
_BELOW = ("#ffffff", "#d4e4f4", "#a5c8ea", "#6aa7e0")
_DARK_ABOVE = ("#1b2128", "#8a4b08")
_DARK_BELOW = ("#1b2128", "#1f5e94")
SHADES = 10


def _blend(colours: Sequence[str], count: int) -> np.ndarray:
    """`count` colours, uint8 [count, 3], evenly along the given ones."""
    known = np.asarray([[int(x[i : i + 2], 16) for i in (1, 3, 5)] for x in colours], np.float64)
    at = np.linspace(0, len(colours) - 1, count)
    channels = [np.interp(at, np.arange(len(colours)), known[:, i]) for i in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _hexadecimal(colours: np.ndarray) -> list[str]:
    return ["#" + bytes(colour).hex() for colour in colours]


def viridis(count: int = MISSING) -> np.ndarray:
    """uint8 [count, 3] from dark violet (low) to yellow (high)."""
    return _blend(_VIRIDIS, count)


def gradients() -> dict[str, str]:
    """CSS gradients by class: for heat maps, and for weights that are shown as shades."""
    both, dark = (*reversed(_BELOW), *_ABOVE[1:]), (*reversed(_DARK_BELOW), *_DARK_ABOVE[1:])
    ramps = {
        "ramp-heat": _VIRIDIS,
        "ramp-above": _ABOVE,
        "ramp-both": both,
        "ramp-dark-above": _DARK_ABOVE,
        "ramp-dark-both": dark,
    }
    return {name: f"linear-gradient(to right, {', '.join(x)})" for name, x in ramps.items()}


def shades(*, dark: bool = False) -> dict[str, str]:
    """Colours behind text by CSS class: p0 ... p10 for weights above 0, n0 ... n10 below.

    Args:
        dark: for a dark page, where text is light.
    """
    above, below = (_DARK_ABOVE, _DARK_BELOW) if dark else (_ABOVE, _BELOW)
    return {
        f"{letter}{place}": colour
        for letter, colours in (("p", above), ("n", below))
        for place, colour in enumerate(_hexadecimal(_blend(colours, SHADES + 1)))
    }


def shade_class(share: float) -> str:
    """The class of `shades` for a weight as a share, -1 to 1, of the largest; "na" for NaN."""
    if np.isnan(share):
        return "na"
    return f"{'p' if share >= 0 else 'n'}{round(min(abs(share), 1.0) * SHADES)}"


def two_sided(count: int = MISSING) -> np.ndarray:
    """uint8 [count, 3] from blue (-1) over white (0) to orange (1)."""
    return _blend((*reversed(_BELOW), *_ABOVE[1:]), count)


def indices(places: np.ndarray) -> np.ndarray:
    """Shares, 0 to 1 or NaN, as uint8 indices of a picture: 0 to 254, or MISSING."""
    known = np.isfinite(places)
    scaled = np.round(np.clip(np.where(known, places, 0), 0, 1) * (MISSING - 1))
    return np.where(known, scaled, MISSING).astype(np.uint8)


def png(picture: np.ndarray, palette: np.ndarray, opacity: np.ndarray | None = None) -> str:
    """A picture as a data: address.

    Args:
        picture: uint8 [h, w], indices of the palette; MISSING is transparent.
        palette: uint8 [at most 255, 3].
        opacity: of each colour, 0 to 1; all are opaque by default.
    """
    height, width = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture], axis=1)  # filter 0: none
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    alpha = np.full(256, 255, np.uint8)
    if opacity is not None:
        alpha[: len(opacity)] = np.round(255 * opacity)
    alpha[MISSING] = 0
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", colours.tobytes()),
        (b"tRNS", alpha.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
