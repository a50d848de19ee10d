"""Class names that are WordNet ids, such as n01855672, as words."""

from collections import Counter
from collections.abc import Mapping, Sequence


def short_names(names: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """Return the first of the words of each id, or all of them where two classes share the first.

    Args:
        names: ids and, unchanged in the result, other names.
        words: id -> its words, separated by a comma and a space.
    """
    first = [words[name].split(", ")[0] if name in words else name for name in names]
    shared = Counter(first)
    return tuple(
        words[name] if name in words and shared[short] > 1 else short
        for name, short in zip(names, first, strict=True)
    )
