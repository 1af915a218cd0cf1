"""zsRE as EasyEdit measures it (Levy et al. 1706.04115; Mitchell et al. 2110.11309; Wang et al. 2308.07269): questions.

All figures are shares of tokens, under teacher forcing, averaged over a record's prompts:

    edit         tokens of the new answer that are the likeliest at their positions, after the question
    paraphrase   the same after the rephrased question
    locality     tokens that are the likeliest along the answer of an unrelated question, and are the same ones in the
                 unedited model, be they right or wrong
    locality_told  the same, with the edit's own statement right before the unrelated question; compared with what the
                 unedited model answers without it
    portability  tokens of the answer to a one-hop question that are the likeliest
    S            harmonic mean of edit, paraphrase and locality

Questions are taken as the data has them, which puts "nq question: " before the unrelated ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .answer_scores import ask
from .records import Context, Record, first_text, is_know_edit, know_edit, one_hop
from .suite import Reference, Suite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse(item: dict[str, Any], name: str) -> Record:
    """A record with `src`, `alt` (the new answer), `answers`, `rephrase`, `loc`, `loc_ans`, and maybe more; or
    one of KnowEdit."""
    if is_know_edit(item):
        return know_edit(item, name)
    return Record(
        name,
        item["src"],
        first_text(item["alt"]),
        first_text(item["answers"]),
        (item["rephrase"],),
        ((item["loc"], first_text(item["loc_ans"])),),
        item.get("subject"),
        one_hop(item),
    )


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[Reference]:
    """The likeliest tokens along the answers of each record's unrelated questions, by the model as it is."""
    return [ask(model, tokenizer, record.neighbours).likeliest for record in records]


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context, reference: Reference
) -> dict[str, float]:
    """How the model, in the mode and with the edits that it has, answers one record's questions after `context`."""
    prefixed = record.after(context)
    distracted = record.after(f"{record.statement} ").after(context)
    questions = [(p, record.new) for p in (prefixed.prompt, *prefixed.paraphrases)]
    pairs = [*questions, *prefixed.portability, *prefixed.neighbours, *distracted.neighbours]
    answers, n = ask(model, tokenizer, pairs), len(record.neighbours)
    found = {
        "edit": answers.accuracy[0].item(),
        "paraphrase": answers.accuracy[1 : len(questions)].mean().item(),
        "locality": unchanged(answers.likeliest[-2 * n : -n], reference),
        "locality_told": unchanged(answers.likeliest[-n:], reference),
    }
    if record.portability:
        found["portability"] = answers.accuracy[len(questions) : len(questions) + len(record.portability)].mean().item()
    return found


def unchanged(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of equal tokens in each pair of answers, averaged over pairs."""
    shares = [
        sum(s == r for s, r in zip(one, other, strict=True)) / len(one)
        for one, other in zip(answers, reference, strict=True)
    ]
    return sum(shares) / len(shares)


ZSRE = Suite(
    name="zsre",
    parse=parse,
    score=score,
    reference=reference,
    parts_of_s=("edit", "paraphrase", "locality"),
    shown=("locality_told", "portability"),
)
