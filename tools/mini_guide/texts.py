"""Short texts to distil a text tower on: WordNet's nouns and definitions, digits, coloured shapes."""

from clipguard.clip.zero_shot import DIGIT_NAMES, MINI_TEMPLATES
from clipguard.seeds import Seed

TEMPLATES = (
    *MINI_TEMPLATES,
    "a photo of the {}.",
    "an image of a {}",
    "the {}",
    "a close-up photo of a {}",
    "a picture of one {}",
    "a cropped photo of a {}",
)
COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange", "brown")
SHAPES = ("circle", "square", "triangle", "star", "octagon", "sign", "arrow", "diamond")
LONGEST = 140


def distillation_texts(seed: Seed) -> list[str]:
    """Return about 145,000 different texts in alphabetical order."""
    return sorted({*_wordnet(seed), *_digits(), *_shapes()})


def imagenet_texts() -> tuple[list[str], list[str]]:
    """Return the first word of each of ImageNet's 1,000 classes, and its words with the definition."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    words = info.label_descriptions()
    detailed = info.label_descriptions(detailed=True)
    return [word.split(", ")[0] for word in words], [text[:LONGEST] for text in detailed]


def _wordnet(seed: Seed) -> set[str]:
    from timm.data.imagenet_info import ImageNetInfo

    generator = seed.child("templates").generator()
    texts = set()
    # "words: definition" of each noun, its words separated by commas.
    for description in ImageNetInfo("imagenet-22k").label_descriptions(detailed=True):
        words, _, definition = description.partition(": ")
        names = words.split(", ")
        texts.add(f"{names[0]}, {definition}"[:LONGEST])
        for name in names:
            template = TEMPLATES[generator.integers(1, len(TEMPLATES))]
            texts |= {name, name.lower(), TEMPLATES[0].format(name), template.format(name)}
    return texts


def _digits() -> set[str]:
    phrases = ("{}", "digit {}", "number {}", "handwritten digit {}", "handwritten number {}")
    return {
        template.format(phrase.format(word))
        for number, name in enumerate(DIGIT_NAMES)
        for word in (name, str(number))
        for phrase in phrases
        for template in TEMPLATES
    }


def _shapes() -> set[str]:
    return {
        template.format(f"{color} {shape}")
        for color in COLORS
        for shape in SHAPES
        for template in TEMPLATES[:4]
    }
