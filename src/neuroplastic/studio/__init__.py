"""`npt studio`: a local page on one loaded workspace, and an OpenAI-compatible interface beside it."""
