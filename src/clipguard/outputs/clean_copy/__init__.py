"""A copy of a source without its dropped samples, in the source's own format; the source is only read."""

from clipguard.outputs.clean_copy.copying import write_clean_copy

__all__ = ["write_clean_copy"]
