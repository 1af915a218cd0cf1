"""Measuring: whether a plastic model stays itself, and what edits change in what it says and in what it should not."""
