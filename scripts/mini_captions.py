"""Write captions for images of the mini world: short, incomplete, sometimes wrong, as on the web.

The pre-training of mini-clip uses them. Any change to the words or to the order in which random
numbers are used changes its weights.
"""

from __future__ import annotations

import re

import numpy as np

from bench.datasets.mini.backgrounds import FAMILIES
from bench.datasets.mini.scenes import COLOURS, Scenes
from bench.datasets.mini.silhouettes import CLASSES
from bench.datasets.mini.styles import STYLES

#: Style -> words for it. These and the other words are the vocabulary of the text tower.
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
#: Hypernym -> classes. A caption may name the kind instead of the class.
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

#: Probabilities that a caption mentions style, colour and background.
STYLE_MENTION, COLOUR_MENTION, BACKGROUND_MENTION = 0.35, 0.30, 0.25
#: Probabilities that the noun is another class, the kind of the class, or "thing".
WRONG_CLASS, KIND_INSTEAD, THING_INSTEAD = 0.05, 0.12, 0.05
#: Probability that a word is replaced by one outside the vocabulary, so that the text tower learns
#: an embedding for unknown words too.
UNKNOWN_WORD = 0.02
#: The replacement. It is not in the vocabulary, so the tokenizer reads it as the unknown word.
UNSEEN = "zzz"

#: Styles whose images do not show the object's colour, or the background's. Captions do not mention
#: what cannot be seen.
WITHOUT_PAINT = ("sketch", "silhouette", "negative")
WITHOUT_GROUND = ("sketch", "negative")


def vocabulary() -> list[str]:
    """Return every word that a caption can contain, sorted."""
    texts = ["a of on image thing", *CLASSES, *COLOURS, *FAMILIES, *KINDS]
    texts += [word for words in STYLE_WORDS.values() for word in words]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text)})


def write_captions(scenes: Scenes, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Write one caption per scene.

    Args:
        scenes: N scenes.
        rng: Source of all random choices.

    Returns:
        The N captions, and for each the label of the class that it names, rightly or wrongly; -1 if
        it names none.
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
        words = [
            UNSEEN if u < UNKNOWN_WORD else word
            for word, u in zip(caption.split(), unseen, strict=True)
        ]
        captions.append(" ".join(words))
        # The noun itself may have been replaced.
        named.append(label if names_class and noun in words else -1)
    return captions, named
