"""Generators fitted in closed form: moments of what layers see on text, then reduced-rank regression."""
