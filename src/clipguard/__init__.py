"""Find and remove backdoors in untrusted, labelled image data sets, guided by CLIP."""

__version__ = "0.1.0"
