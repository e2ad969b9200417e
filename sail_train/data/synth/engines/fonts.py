"""Fonts: matplotlib's own for Latin letters, so that they are the same everywhere; for Chinese what is installed.

Folders named in SAIL_FONTS (separated as in PATH) are searched first, for machines where nothing can be installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LATIN = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "times": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
}
"""Regular and bold, by style; files that come with matplotlib."""

CHINESE = (
    ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", 2),
    ("NotoSansCJKsc-Regular.otf", "NotoSansCJKsc-Bold.otf", 0),
    ("NotoSansSC-Regular.otf", "NotoSansSC-Bold.otf", 0),
    ("SourceHanSansSC-Regular.otf", "SourceHanSansSC-Bold.otf", 0),
    ("wqy-microhei.ttc", "wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", "wqy-zenhei.ttc", 0),
    ("DroidSansFallbackFull.ttf", "DroidSansFallbackFull.ttf", 0),
    ("PingFang.ttc", "PingFang.ttc", 0),
    ("msyh.ttc", "msyhbd.ttc", 0),
    ("simhei.ttf", "simhei.ttf", 0),
)
"""Regular, bold and the number of the Chinese face inside, best first: those of Linux, macOS, Windows."""

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts",
           "/System/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip

EXTRA = "it takes the extra `synth`: pip install 'sail-train[synth]'"


@dataclass(frozen=True, kw_only=True)
class Face:
    """A font file, and which of its faces."""

    path: str
    index: int = 0


def latin(style: str, *, bold: bool = False) -> Face:
    """A style of `LATIN`. ValueError without matplotlib, whose fonts they are."""
    try:
        from matplotlib import get_data_path
    except ModuleNotFoundError:
        raise ValueError(f"matplotlib is not installed, whose fonts and charts are drawn; {EXTRA}") from None
    return Face(path=str(Path(get_data_path()) / "fonts" / "ttf" / LATIN[style][int(bold)]))


@lru_cache(maxsize=2)
def chinese(*, bold: bool = False) -> Face:
    """The best installed font with Chinese characters. ValueError without one, saying what to install."""
    files = _installed()
    for regular, heavy, index in CHINESE:
        if regular in files:
            return Face(path=files.get(heavy, files[regular]) if bold else files[regular], index=index)
    raise ValueError(
        "language 'zh' needs a font with Chinese characters, and none is installed: apt-get install fonts-noto-cjk, or "
        f"put one of {', '.join(regular for regular, _, _ in CHINESE[:5])} into a folder and name it in SAIL_FONTS; or "
        "ask for --language en"
    )


def face(language: str, style: str = "sans", *, bold: bool = False) -> Face:
    """The face that text of a language is written in; Chinese has one style only."""
    return chinese(bold=bold) if language == "zh" else latin(style, bold=bold)


@lru_cache(maxsize=64)
def load(face: Face, size: int) -> FreeTypeFont:
    """For Pillow, `size` pixels high. Basic layout: the other depends on a library that not every wheel has."""
    from PIL import ImageFont

    return ImageFont.truetype(face.path, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


def _installed() -> dict[str, str]:
    """Path of each font file by its name; of two with one name that of the earlier folder."""
    own = [folder for folder in os.environ.get("SAIL_FONTS", "").split(os.pathsep) if folder]
    found: dict[str, str] = {}
    for folder in (*own, *FOLDERS):
        for root, folders, names in os.walk(Path(folder).expanduser()):
            folders.sort()
            for name in names:
                found.setdefault(name, str(Path(root) / name))
    return found
