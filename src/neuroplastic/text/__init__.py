"""Text into and out of a model: tokens, conversations, what it writes, and how likely it finds that."""
