"""Permanent updates: from a context to a weight change that is named, listed, and taken back bit for bit."""
