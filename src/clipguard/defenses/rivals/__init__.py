"""Rival defences and detectors, re-implemented from their papers or taken from their packages."""
