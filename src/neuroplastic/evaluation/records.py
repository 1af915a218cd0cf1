"""What a suite asks: one fact to be taught, other wordings of it, and what should stay."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Record:
    """One edit: `prompt` should be followed by `new` instead of `true`; neighbours should keep their own."""

    id: str
    prompt: str
    new: str
    true: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    """prompts and their true answers"""
    subject: str | None = None
    """as the data marks it; our own methods are not told it"""

    @property
    def statement(self) -> str:
        return f"{self.prompt} {self.new}."

    def behind(self, told: str) -> Record:
        """The same questions, with `told` in front of every prompt."""
        if not told:
            return self
        return replace(
            self,
            prompt=told + self.prompt,
            paraphrases=tuple(told + p for p in self.paraphrases),
            neighbours=tuple((told + p, answer) for p, answer in self.neighbours),
        )
