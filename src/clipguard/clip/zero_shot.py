"""The guide: CLIP's zero-shot scores of every image for the class names, independent of the given labels."""

import functools
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from clipguard.clip.loading import DEFAULT_MODEL, DEFAULT_PRETRAINED, FOLDER_PREFIX, HUB_PREFIX, load_clip
from clipguard.clip.model import Clip
from clipguard.data.wordnet import short_names
from clipguard.errors import ClipguardError
from clipguard.types import Rows, Scores

EMBEDDED = "mini"
EMBEDDED_SHA256 = "3b4bd16a096cd2bedaab52fc70dd0d276480c3e6c8ce4fe5cfd549c32a5b8848"
PHOTO_TEMPLATES = ("a photo of a {}",)
# What the embedded guide was tuned towards.
MINI_TEMPLATES = ("a photo of a {}", "a blurry photo of a {}", "a low resolution photo of a {}", "{}")
# For the class names `DIGIT_NAMES`: digits are no objects to take photos of.
DIGIT_TEMPLATES = ("{}", "the digit {}", "handwritten digit {}", "a photo of the number {}")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[\d\s.,_+-]*\d[\d\s.,_+-]*")
_PLACEHOLDER = re.compile(r"(class|cls|cat|category|label|lbl|id|group|folder)[\s-]*\d+", re.IGNORECASE)
_SHORT_CODE = re.compile(r"[a-z]{1,2}[\s-]?\d{1,6}|[a-z]", re.IGNORECASE)
_HASH = re.compile(r"(?=[^a-f]*[a-f])(?=\D*\d)[0-9a-f-]{8,}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines [n, k] of unit image embeddings [n, d] and classes, as `Rows`: computed when asked for.

    Sums are in float64 and rounded once. Single precision would depend on which rows are asked for together.
    """

    embeddings: Rows
    classes: Float64[np.ndarray, "k d"]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of images and of classes."""
        return len(self.embeddings), len(self.classes)

    def __len__(self) -> int:
        """Return n."""
        return len(self.embeddings)

    def __getitem__(self, rows: Any, /) -> Float32[np.ndarray, "m k"]:
        """Return the cosines of a slice of the images, or of an array of row numbers."""
        cosines: Float32[np.ndarray, "m k"] = (
            self.embeddings[rows].astype(np.float64) @ self.classes.T
        ).astype(np.float32)
        return cosines


@dataclass(frozen=True)
class ClipGuide:
    """A CLIP with prompts: class names to text embeddings, image embeddings to zero-shot logits.

    Making one only stores the choice; the model is loaded when it is first needed, as `clip`.

    Attributes:
        model: `mini` (embedded), a built-in name of open_clip, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.
        pretrained: the weights' tag of a built-in name, unread otherwise.
        templates: prompts with `{}` where the class name goes; several are averaged. None takes the ensemble
            that `mini` was tuned towards, and `PHOTO_TEMPLATES` for every other model.
        use_logit_scale: give the model's own logit scale with the logits. Otherwise the scale is 1, by which
            the softmax of cosines is nearly uniform.
    """

    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED
    templates: Sequence[str] | None = field(default=None, kw_only=True)
    use_logit_scale: bool = field(default=True, kw_only=True)

    @property
    def name(self) -> str:
        """The guide in one word, without templates and scale; `guide_from_name` takes it back."""
        built_in = self.model != EMBEDDED and not self.model.startswith((HUB_PREFIX, FOLDER_PREFIX))
        return f"{self.model}/{self.pretrained}" if built_in else self.model

    @functools.cached_property
    def clip(self) -> Clip:
        """The loaded model.

        Raises:
            ClipguardError: unknown name, or weights that cannot be loaded.
        """
        if self.model != EMBEDDED:
            return load_clip(self.model, self.pretrained)
        folder = resources.files("clipguard") / "clip" / EMBEDDED
        return load_clip(f"{FOLDER_PREFIX}{folder}")

    def with_network(self, network: Any) -> "ClipGuide":
        """Return the same guide with another network of the same build, which no file holds yet."""
        other = replace(self)
        # Where `cached_property` keeps it.
        vars(other)["clip"] = replace(self.clip, network=network)
        return other

    def unloaded(self) -> "ClipGuide":
        """Return the same choice without the loaded model, for another process; a folder by its full path."""
        folder = self.model.removeprefix(FOLDER_PREFIX)
        whole = f"{FOLDER_PREFIX}{Path(folder).expanduser().absolute()}"
        return replace(self, model=self.model if folder == self.model else whole)

    @property
    def weights_verified_by(self) -> str | None:
        """Whose hash the weights have: `embedded`, that of this release; `hub`, the hub's; None, nobody's.

        Raises:
            ClipguardError: the weights have another hash.
        """
        if self.model == EMBEDDED:
            verifier, expected = "embedded", EMBEDDED_SHA256
        elif self.model.startswith(FOLDER_PREFIX) or self.clip.hub_sha256 is None:
            return None
        else:
            verifier, expected = "hub", self.clip.hub_sha256
        if self.clip.fingerprint != expected:
            raise ClipguardError(
                f"guide {self.name}: {self.clip.weights} is not what was released (sha256 {expected}): "
                "get it again"
            )
        return verifier

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of weights, preprocessing, templates and scale: all that the logits depend on."""
        parts = {
            "weights": self.clip.fingerprint,
            "preprocessing": self.clip.preprocessing_sha256,
            "templates": self.prompts,
            "use_logit_scale": self.use_logit_scale,
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates in use.

        Raises:
            ClipguardError: no template, or one without a place for the class name.
        """
        if self.templates is None:
            return MINI_TEMPLATES if self.model == EMBEDDED else PHOTO_TEMPLATES
        templates = (self.templates,) if isinstance(self.templates, str) else tuple(self.templates)
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            what = repr(wrong[0]) if wrong else "an empty list"
            raise ClipguardError(f"guide template {what}: write {{}} once where the class name goes")
        return templates

    def class_embeddings(self, class_names: Sequence[str]) -> Float32[np.ndarray, "k d"]:
        """Return one embedding of length one a class: the mean over the templates of `readable_names`.

        Raises:
            ClipguardError: a bad template, or a model that cannot be loaded.
        """
        mean = self._by_prompt(class_names).mean(axis=0)
        unit: Float32[np.ndarray, "k d"] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit

    def _by_prompt(self, class_names: Sequence[str]) -> Float32[np.ndarray, "t k d"]:
        prompts = self.prompts
        names, _ = readable_names(class_names)
        texts = [template.replace("{}", name) for template in prompts for name in names]
        return self.clip.embed_texts(texts).reshape(len(prompts), len(names), -1)

    def logits(self, image_embeddings: Rows, class_names: Sequence[str]) -> Scores:
        """Return cosines of images and classes, with the scale whose softmax is the zero-shot posterior.

        `image_embeddings` are float32 [n, d], of length one; they are read when a cosine is asked for.

        A sigmoid model's bias is left out, because it cancels: see `clipguard.clip.model.Clip`.

        Raises:
            ClipguardError: a bad template, or a model that cannot be loaded.
        """
        return self._scores(image_embeddings, self.class_embeddings(class_names))

    def logits_by_prompt(self, image_embeddings: Rows, class_names: Sequence[str]) -> Iterator[Scores]:
        """Return what each of the prompts says alone, in their order; see `logits`.

        Raises:
            ClipguardError: a bad template, or a model that cannot be loaded.
        """
        return (self._scores(image_embeddings, classes) for classes in self._by_prompt(class_names))

    def _scores(self, image_embeddings: Rows, classes: Float32[np.ndarray, "k d"]) -> Scores:
        scale = self.clip.logit_scale if self.use_logit_scale else 1.0
        cosines = Cosines(image_embeddings, classes.astype(np.float64))
        return Scores(logits=cosines, scale=scale, source=self.name)

    def warnings_for(self, class_names: Sequence[str]) -> list[str]:
        """Return one line for each kind of class name that means little to a text tower. Needs no model."""
        names, notes = readable_names(class_names)
        faulty: dict[str, list[str]] = {
            "are empty, so that the guide's scores for them are noise": [n for n in names if not n],
            "are WordNet ids that are not in the list": [n for n in names if _WORDNET_ID.fullmatch(n)],
            "are bare numbers, which mean nothing to the guide": [n for n in names if _NUMBER.fullmatch(n)],
            "are codes, which mean nothing to the guide": _codes(names),
            "are not in Latin script, while most guides read English alone": [
                n for n in names if _in_another_script(n)
            ],
            "read the same as another, so that the guide cannot tell them apart": _repeated(names),
        }
        return notes + [
            f"{len(some)} of {len(names)} class names {fault}: {_first_few(some)}; give words as classes"
            for fault, some in faulty.items()
            if some
        ]


def guide_from_name(
    text: str, *, templates: Sequence[str] | None = None, use_logit_scale: bool = True
) -> ClipGuide:
    """Return the guide of a command-line word; the model is not loaded yet.

    Args:
        text: `mini`, `NAME` or `NAME/TAG` of open_clip, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.
        templates: as in `ClipGuide`.
        use_logit_scale: as in `ClipGuide`.

    Raises:
        ClipguardError: a tag is given for the embedded guide, which has one set of weights.
    """
    model, pretrained = text, DEFAULT_PRETRAINED
    # Anything else with a slash is a path, which `load_clip` refuses by its whole name.
    if re.fullmatch(r"[\w-][^/:]*/[^/]+", text):
        model, _, pretrained = text.partition("/")
    if model == EMBEDDED != text:
        raise ClipguardError(f"guide {text!r}: the embedded guide has one set of weights, give {EMBEDDED}")
    return ClipGuide(model, pretrained, templates=templates, use_logit_scale=use_logit_scale)


def readable_names(class_names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names in words, in the same order, and a line on those that were WordNet ids, if any.

    WordNet ids such as n01855672 become the first of their words ("goose"), or all of them where two classes
    share the first; underscores become spaces.
    """
    spelled = [" ".join(name.replace("_", " ").split()) for name in class_names]
    ids = [name for name in spelled if _WORDNET_ID.fullmatch(name)]
    if not ids:
        return tuple(spelled), []
    words = _wordnet_words()
    names = short_names(spelled, words)
    replaced = [f"{name} = {word}" for name, word in zip(spelled, names, strict=True) if name in words]
    note = (
        f"{len(replaced)} of {len(spelled)} class names are WordNet ids and were read as words: "
        f"{_first_few(replaced)}"
    )
    return names, [note] if replaced else []


@functools.cache
def _wordnet_words() -> dict[str, str]:
    """Return the comma-separated words of each noun that ImageNet-21k knows, as timm carries them."""
    from timm.data.imagenet_info import ImageNetInfo

    described = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
    return dict(described)  # type: ignore[arg-type]  # as_dict makes it a dict


def _codes(names: Sequence[str]) -> list[str]:
    """Return the names that are codes: numbered placeholders, hashes, or, if most names are, short codes."""
    short = [name for name in names if _SHORT_CODE.fullmatch(name)]
    # A few among words are names of things, such as A320 or F-16.
    codes = set(short) if 2 * len(short) > len(names) else set()
    return [name for name in names if name in codes or _PLACEHOLDER.fullmatch(name) or _HASH.fullmatch(name)]


def _in_another_script(name: str) -> bool:
    """Return whether most letters of a name are of another script than Latin."""
    letters = [letter for letter in name if letter.isalpha()]
    foreign = sum(not unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * foreign > len(letters)


def _repeated(names: Sequence[str]) -> list[str]:
    counts = Counter(name.casefold() for name in names if name)
    return [name for name in names if counts[name.casefold()] > 1]


def _first_few(names: Sequence[str]) -> str:
    listed = ", ".join(name or "(empty)" for name in names[:5])
    return listed + (", ..." if len(names) > 5 else "")
