"""What the web would write under the mini world's pictures: short, incomplete and sometimes
wrong.
"""

from __future__ import annotations

import re

import numpy as np

from bench.datasets.mini.backgrounds import FAMILIES
from bench.datasets.mini.scenes import COLOURS, Scenes
from bench.datasets.mini.silhouettes import CLASSES
from bench.datasets.mini.styles import STYLES

STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "picture", "photograph"),
    "sketch": ("sketch", "drawing"),
    "painting": ("painting", "artwork"),
    "cartoon": ("cartoon", "clipart"),
    "negative": ("negative", "inverted picture"),
    "embroidery": ("embroidery", "stitching"),
    "mosaic": ("mosaic", "tiling"),
    "silhouette": ("silhouette", "shadow"),
}
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("bird", "fish"),
    "plant": ("leaf", "mushroom", "tree"),
    "tool": ("hammer", "key", "umbrella"),
    "vehicle": ("boat", "car"),
    "container": ("bottle", "cup"),
    "symbol": ("arrow", "heart", "star"),
    "building": ("house",),
    "weather": ("cloud", "moon"),
    "ornament": ("bell", "crown"),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}

STYLE_MENTION, COLOUR_MENTION, BACKGROUND_MENTION = 0.35, 0.30, 0.25
WRONG_CLASS, KIND_INSTEAD, THING_INSTEAD = 0.05, 0.12, 0.05
UNKNOWN_WORD = 0.02
"""Probability that a word is one outside the vocabulary: the text tower learns such words, too."""
UNSEEN = "zzz"

WITHOUT_PAINT = ("sketch", "silhouette", "negative")
WITHOUT_GROUND = ("sketch", "negative")


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = ["a of on image thing", *CLASSES, *COLOURS, *FAMILIES, *KINDS]
    texts += [word for words in STYLE_WORDS.values() for word in words]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text)})


def write_captions(scenes: Scenes, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """One caption per scene.

    Returns:
        The captions, and the label of the class that each names, rightly or wrongly; -1 if it names
            none.
    """
    names, styles, families, colours = list(CLASSES), list(STYLES), list(FAMILIES), list(COLOURS)
    captions, named = [], []
    for row in range(len(scenes)):
        style = styles[int(scenes.style[row])]
        luck = rng.random(6)
        label = int(scenes.label[row])
        if luck[0] < WRONG_CLASS:
            label = int(rng.integers(len(names)))
            noun, names_class = names[label], True
        elif luck[0] < WRONG_CLASS + KIND_INSTEAD:
            noun, names_class = _KIND_OF[names[label]], False
        elif luck[0] < WRONG_CLASS + KIND_INSTEAD + THING_INSTEAD:
            noun, names_class = "thing", False
        else:
            noun, names_class = names[label], True

        words = []
        if luck[1] < STYLE_MENTION:
            words += ["a", str(rng.choice(STYLE_WORDS[style])), "of"]
        elif luck[2] < 0.5:
            words += ["a", "image", "of"]
        words.append("a")
        if style not in WITHOUT_PAINT and luck[3] < COLOUR_MENTION:
            words.append(colours[int(scenes.paint[row])])
        words.append(noun)
        if luck[4] < BACKGROUND_MENTION:
            words.append("on")
            if style not in WITHOUT_GROUND and luck[5] < 0.5:
                words.append(colours[int(scenes.ground[row])])
            words.append(families[int(scenes.family[row])])
        caption = " ".join(words)
        unseen = rng.random(len(caption.split()))
        kept = [
            UNSEEN if u < UNKNOWN_WORD else word
            for word, u in zip(caption.split(), unseen, strict=True)
        ]
        captions.append(" ".join(kept))
        named.append(label if names_class and noun in kept else -1)
    return captions, named
