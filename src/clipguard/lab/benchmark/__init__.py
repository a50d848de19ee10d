"""Attacks x defences, resumable row by row: config -> cells -> rows -> results.parquet -> table and pictures.

Nothing is imported here, so that the report of a finished benchmark needs no torch.
"""
