"""One offline HTML page about a run: summarise to plain values, then render. No stage knows of it."""

from clipguard.outputs.report.page import render, write_report
from clipguard.outputs.report.plot import entropy_map, entropy_map_svg
from clipguard.outputs.report.summary import summarize

__all__ = ["entropy_map", "entropy_map_svg", "render", "summarize", "write_report"]
