"""Records asked as the strict suites ask them: the model writes by itself, and `strict.py` judges what it wrote.

Each figure is a share of the questions that count for it, answered as `strict.judge` wants it; beside them

    repeats       share of replies that say the answer more than twice in a sentence, or in more than two equal ones
    contradicted  share of replies that say the answer, and before it or after it something that contradicts it
    exact         share of replies to `Question: ... Answer:` that are the answer and nothing else
    f1, chat_f1   F1 of the words of the replies to `Question: ... Answer:`, and in chat
    kept          share of unrelated questions that are answered with the same tokens as by the unedited model
    context_tokens  number of tokens that the method puts before a question
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..text.conversation import render
from ..text.spaces import without_trailing_spaces
from ..text.tokens import encode, start_token
from .records import Context, Question, Record, before
from .replies import replies
from .strict import judge
from .suite import Reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> Reference:
    """The tokens of the replies to the unrelated questions, by the model as it is.

    The record's own questions are asked in the same batch, as `score` does: sums of floats depend on a batch's shape in
    the last bit, and a batch of eight takes hardly longer than one of three.
    """
    own, unrelated = asked_of(tokenizer, record)
    written = replies(model, tokenizer, [prompt(tokenizer, q) for q in (*own, *unrelated)])
    return [r.tokens for r in written[len(own) :]]


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context, reference: Reference
) -> dict[str, float]:
    """How the model, in the mode and with the edits that it has, answers one record's questions after `context`."""
    own, unrelated = asked_of(tokenizer, record)
    prompts = [prompt(tokenizer, q, context) for q in (*own, *unrelated)]
    written = replies(model, tokenizer, prompts)
    written, others = written[: len(own)], written[len(own) :]
    against = [record.true] if record.true else []
    verdicts = [judge(r.text, [record.new, *record.aliases], against) for r in written]
    values: dict[str, list[float]] = defaultdict(list)
    for question, verdict in zip(own, verdicts, strict=True):
        values[question.figure].append(verdict.found)
        if question.form == "question":
            values["exact"].append(verdict.exact)
            values["f1"].append(verdict.f1)
        if question.form == "chat":
            values["chat_f1"].append(verdict.f1)
        values["repeats"].append(verdict.repeats)
        values["contradicted"].append(verdict.contradicted)
    values["kept"] = [r.tokens == old for r, old in zip(others, reference, strict=True)]
    bare = (len(prompt(tokenizer, q)) for q in (*own, *unrelated))
    values["context_tokens"] = [len(p) - n for p, n in zip(prompts, bare, strict=True)]
    return {name: sum(shares) / len(shares) for name, shares in values.items() if shares}


def asked_of(tokenizer: PreTrainedTokenizerBase, record: Record) -> tuple[list[Question], list[Question]]:
    """The record's own questions and the unrelated ones, without those in chat if the model has no chat template."""

    def possible(questions: Sequence[Question]) -> list[Question]:
        return [q for q in questions if q.form != "chat" or tokenizer.chat_template]

    return possible(record.questions), possible(record.unrelated)


def prompt(tokenizer: PreTrainedTokenizerBase, question: Question, context: Context = "") -> list[int]:
    """The tokens that the model continues; in chat, `context` stands in the user's turn."""
    text = before(context, question.text) if context else ""
    match question.form:
        case "chat":
            return encode(tokenizer, render(tokenizer, [{"role": "user", "content": text + question.text}]))
        case "question":
            text += f"Question: {question.text}\nAnswer:"
        case "text":
            text += without_trailing_spaces(question.text)
    return [start_token(tokenizer), *encode(tokenizer, text)]
