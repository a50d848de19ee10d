"""Rival defences, re-implemented from their papers: one file a method, others for what methods share."""
