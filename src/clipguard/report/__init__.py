"""One offline HTML page about a run: summarise to plain values, then render. No stage knows of it."""

from clipguard.report.page import render, write_report
from clipguard.report.plot import entropy_map, entropy_map_svg
from clipguard.report.summary import summarize

__all__ = ["entropy_map", "entropy_map_svg", "render", "summarize", "write_report"]
