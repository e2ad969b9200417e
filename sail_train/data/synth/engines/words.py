"""What things are called in English and Chinese; the English names are the ones that stand in facts."""

from __future__ import annotations

COLOURS = {
    "red": ((214, 48, 49), "红色"),
    "green": ((39, 154, 86), "绿色"),
    "blue": ((41, 98, 235), "蓝色"),
    "yellow": ((241, 196, 15), "黄色"),
    "purple": ((142, 68, 173), "紫色"),
    "black": ((35, 35, 35), "黑色"),
}
"""RGB and Chinese name; far enough apart to be told at a few pixels."""

SHAPES = {
    "circle": ("circles", "圆形"),
    "square": ("squares", "正方形"),
    "triangle": ("triangles", "三角形"),
    "star": ("stars", "五角星"),
    "diamond": ("diamonds", "菱形"),
    "hexagon": ("hexagons", "六边形"),
}
"""English plural and Chinese name."""

SIZES = {"small": "小", "large": "大"}

RELATIONS = {
    "left": ("to the left of", "左边"),
    "right": ("to the right of", "右边"),
    "above": ("above", "上方"),
    "below": ("below", "下方"),
}
"""Where something is, seen from something else."""

MOST = {
    "left": ("leftmost", "最左边"),
    "right": ("rightmost", "最右边"),
    "above": ("topmost", "最上面"),
    "below": ("bottommost", "最下面"),
}


def phrase(language: str, *, size: str = "", colour: str = "", shape: str = "", plural: bool = False) -> str:
    """ "large red squares", "大的红色正方形"; without a shape "red objects", "红色物体"."""
    if language == "zh":
        name = SHAPES[shape][1] if shape else "物体"
        return (f"{SIZES[size]}的" if size else "") + (COLOURS[colour][1] if colour else "") + name
    if shape:
        name = SHAPES[shape][0] if plural else shape
    else:
        name = "objects" if plural else "object"
    return " ".join(word for word in (size, colour, name) if word)
