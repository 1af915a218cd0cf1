"""Records asked as the strict suites ask them: the model writes by itself, and `strict.py` judges what it wrote.

Each figure is a share of the questions that count for it, answered as `strict.judge` wants it. Beside them stand those
of `claims.py`, and, over the questions about the fact itself (those in ASIDE are left out),

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
from ..text.scoring import Continuation
from ..text.scoring import score as scores_of
from ..text.spaces import continuing, without_trailing_spaces
from ..text.tokens import encode, encode_after, start_token
from .claims import NO, UNKNOWN, YES, choice, negated, yes_or_no_questions
from .records import Claim, Context, Question, Record, before
from .replies import Group, replies, replies_to_groups
from .strict import judge
from .suite import Reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ASIDE = frozenset(["portability", "reversed"])
"""Figures of questions that have another answer than the fact's own."""


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[Reference]:
    """The tokens of the replies to each record's unrelated questions, by the model as it is.

    Its own questions belong to the same group, as in `score`: sums of floats depend on a batch's shape in the last bit.
    """
    groups = []
    for record in records:
        own, unrelated = asked_of(tokenizer, record)
        groups.append(Group([prompt(tokenizer, q) for q in (*own, *unrelated)], len(unrelated)))
    return [[r.tokens for r in written] for written in replies_to_groups(model, tokenizer, groups)]


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context, reference: Reference
) -> dict[str, float]:
    """How the model, in the mode and with the edits that it has, answers one record's questions after `context`."""
    own, unrelated = asked_of(tokenizer, record)
    prompts = [prompt(tokenizer, q, context) for q in (*own, *unrelated)]
    written = replies(model, tokenizer, prompts)
    written, others = written[: len(own)], written[len(own) :]
    values: dict[str, list[float]] = defaultdict(list)
    for question, reply in zip(own, written, strict=True):
        verdict = judge(reply.text, *_wanted(record, question))
        values[question.figure].append(verdict.found)
        if question.figure in ASIDE:
            continue
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
    for figures in preferences(model, tokenizer, record.claims, context):
        for name, value in figures.items():
            values[name].append(value)
    return {name: sum(shares) / len(shares) for name, shares in values.items() if shares}


def asked_of(tokenizer: PreTrainedTokenizerBase, record: Record) -> tuple[list[Question], list[Question]]:
    """The record's own questions and the unrelated ones, without those in chat if the model has no chat template."""

    def possible(questions: Sequence[Question]) -> list[Question]:
        return [q for q in questions if q.form != "chat" or tokenizer.chat_template]

    return possible(record.questions), possible(record.unrelated)


def prompt(tokenizer: PreTrainedTokenizerBase, question: Question, context: Context = "") -> list[int]:
    """The tokens that the model continues; in chat, `context` stands in the user's turn."""
    return [*_opening(tokenizer, question), *encode(tokenizer, _prompt_text(tokenizer, question, context))]


def preferences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, claims: Sequence[Claim], context: Context = ""
) -> list[dict[str, float]]:
    """`negated` of each claim, and the shares of `choice` if the model has a chat template; one batch for all."""
    asked = [answer for claim in claims for answer in answers_about(tokenizer, claim, context)]
    means = iter([s.logprobs.mean().item() for s in scores_of(model, asked)] if asked else [])
    found: list[dict[str, float]] = []
    for claim in claims:
        true, false = (next(means), next(means)), (next(means), next(means))
        found.append({"negated": float(negated(true, false))})
        if tokenizer.chat_template:
            found[-1] |= choice(next(means), next(means) if claim.old else None, next(means))
    return found


def answers_about(tokenizer: PreTrainedTokenizerBase, claim: Claim, context: Context = "") -> list[Continuation]:
    """What `preferences` compares: Yes and No after each of two questions, and in chat the answers to choose from."""
    found: list[Continuation] = []
    for text in yes_or_no_questions(claim.statement):
        found += [_answered(tokenizer, Question("", "question", text), a, context, 1) for a in (YES, NO)]
    if tokenizer.chat_template:
        question = Question("", "chat", claim.question)
        found += [_answered(tokenizer, question, a, context) for a in (claim.answer, claim.old, UNKNOWN) if a]
    return found


def _wanted(record: Record, question: Question) -> tuple[list[str], list[str]]:
    """The answers to a question, and those that contradict them."""
    if question.answers:
        return list(question.answers), [a for a in question.against if a]
    return [record.new, *record.aliases], [record.true] if record.true else []


def _answered(
    tokenizer: PreTrainedTokenizerBase, question: Question, answer: str, context: Context, first: int | None = None
) -> Continuation:
    """An answer, or its `first` tokens, after a question. In chat nothing stands before it if a line break or a special
    token opens the model's turn."""
    text = _prompt_text(tokenizer, question, context)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    opened = text[-1:] == "\n" or encode(tokenizer, text)[-1] in special
    read, wanted = encode_after(tokenizer, text, answer if opened else continuing(text, answer))
    return Continuation([*_opening(tokenizer, question), *read], wanted[:first])


def _opening(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    """The start token; a chat template writes its own."""
    return [] if question.form == "chat" else [start_token(tokenizer)]


def _prompt_text(tokenizer: PreTrainedTokenizerBase, question: Question, context: Context) -> str:
    text = before(context, question.text) if context else ""
    match question.form:
        case "chat":
            return render(tokenizer, [{"role": "user", "content": text + question.text}])
        case "question":
            return f"{text}Question: {question.text}\nAnswer:"
        case "text":
            return text + without_trailing_spaces(question.text)
