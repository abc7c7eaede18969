"""Fonts that can write a label: any text is a class, and Pillow's own font knows ASCII only."""

import functools
import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
)
"""Names by which Pillow looks for fonts in the folders of the system, in this order."""
ELLIPSIS = "..."
_NO_LETTER = "\uffff"


def fit_label(text: str, size: int, width: float) -> tuple[str, Font]:
    """Choose a font for a label and shorten the label to a width.

    Letters that no font of this machine has lose their accents, or else become question marks.

    Args:
        text: The label; an end in ``%`` is kept as long as there is room for it.
        size: Of the font in pixels.
        width: Pixels that there are.

    Returns:
        What is to be written, and with which font.
    """
    fonts = _fonts(size)
    font = next((font for font in fonts if can_write(font, text)), None)
    if font is None:
        font, text = fonts[0], _simplify(text, fonts[0])
    if font.getlength(text) <= width:
        return text, font
    name, _, score = text.rpartition(" ")
    end = f"{ELLIPSIS} {score}" if score.endswith("%") else ELLIPSIS
    name = name if score.endswith("%") else text
    while name and font.getlength(name + end) > width:
        name = name[:-1]
    return name + end, font


def can_write(font: Font, text: str) -> bool:
    """Whether a font has every letter of a text."""
    return all(_has(font, letter) for letter in set(text) if not letter.isspace())


@functools.lru_cache(maxsize=4096)
def _has(font: Font, letter: str) -> bool:
    """Whether a letter looks different from one that does not exist."""
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


def _simplify(text: str, font: Font) -> str:
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isspace() or _has(font, letter) else "?" for letter in letters)


@functools.lru_cache(maxsize=8)
def _fonts(size: int) -> Sequence[Font]:
    """Pillow's own font, and those of ``FONTS`` that are on this machine."""
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in (*FONTS, *_matplotlib_font()):
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:  # not on this machine
            continue
    return fonts


def _matplotlib_font() -> list[str]:
    """The font that matplotlib brings along (extra ``metrics``)."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return []
    return [str(Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf")]
