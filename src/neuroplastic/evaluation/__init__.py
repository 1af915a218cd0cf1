"""Measuring: does a plastic model stay itself."""
