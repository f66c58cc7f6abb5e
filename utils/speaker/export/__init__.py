"""Recognizers as files for projects without this code."""
