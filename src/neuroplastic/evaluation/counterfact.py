"""CounterFact as ROME and MEMIT define it (Meng et al. 2202.05262, 2210.07229): does an edit stick, carry over, stay.

For a prompt, p(new) and p(true) are the length-normalised probabilities of the two targets, exp of the mean
log-probability per target token, under teacher forcing.

    ES  share of edit prompts with p(new) > p(true)           PS  the same for paraphrases
    NS  share of neighbourhood prompts with p(true) > p(new)  S   harmonic mean of the three
    EM, PM, NM   the mean difference of the two probabilities, in the direction of success
    *_acc        share of prompts whose wanted target is the likeliest at each of its tokens
    NS_told      NS, with the edit's own statement right before each neighbourhood prompt
    portability  share of the tokens of a one-hop question's answer that are the likeliest (EasyEdit)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, cat, split

from .answer_scores import ask
from .records import Context, Record, first_text, is_know_edit, know_edit, one_hop
from .suite import Reference, Suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse(item: dict[str, Any], name: str) -> Record:
    """A record of a CounterFact file, full or flat, or of KnowEdit.

    Full records have `requested_rewrite`, `paraphrase_prompts` and `neighborhood_prompts`; flat ones `prompt`,
    `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt` and `locality_ground_truth`.
    """
    if "requested_rewrite" in item:
        rewrite = item["requested_rewrite"]
        true = rewrite["target_true"]["str"].strip()
        return Record(
            name,
            rewrite["prompt"].format(rewrite["subject"]),
            rewrite["target_new"]["str"].strip(),
            true,
            tuple(item["paraphrase_prompts"]),
            tuple((near, true) for near in item["neighborhood_prompts"]),
            rewrite["subject"],
            one_hop(item),
            tuple(dict.fromkeys(item.get("generation_prompts") or ())),
        )
    if is_know_edit(item):
        return know_edit(item, name)
    return Record(
        name,
        item["prompt"],
        first_text(item["target_new"]),
        first_text(item["ground_truth"]),
        (item["rephrase_prompt"],),
        ((item["locality_prompt"], first_text(item["locality_ground_truth"])),),
        item.get("subject"),
        one_hop(item),
    )


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context, reference: Reference
) -> dict[str, float]:
    """How the model, in the mode and with the edits that it has, answers one record's prompts after `context`."""
    prefixed = record.after(context)
    distracted = record.after(f"{record.statement} ").after(context)
    questions = [(p, record.true) for p in (prefixed.prompt, *prefixed.paraphrases)]
    questions += [*prefixed.neighbours, *distracted.neighbours]
    pairs = [(p, record.new) for p, _ in questions] + questions + list(prefixed.portability)
    answers, n = ask(model, tokenizer, pairs), len(questions)
    new, true, hops = answers.logprob[:n], answers.logprob[n : 2 * n], answers.accuracy[2 * n :]
    right = answers.accuracy == 1
    m = n - len(record.neighbours)
    found = shares(new[:m], true[:m], right[:m], right[n : n + m], len(record.paraphrases))
    found["NS_told"] = (new < true)[m:].float().mean().item()
    if len(hops):
        found["portability"] = hops.mean().item()
    return found


def shares(new: Tensor, true: Tensor, new_right: Tensor, true_right: Tensor, paraphrases: int) -> dict[str, float]:
    """From log p(new) and log p(true), and which of the two are likeliest throughout, of the edit prompt, the
    paraphrases and the neighbours, in this order: shares from 0 to 1, magnitudes from -1 to 1."""
    parts = [1, paraphrases, len(new) - 1 - paraphrases]
    success = cat([(new > true)[: 1 + paraphrases], (new < true)[1 + paraphrases :]]).float()
    difference = new.exp() - true.exp()
    magnitude = cat([difference[: 1 + paraphrases], -difference[1 + paraphrases :]])
    accuracy = cat([new_right[: 1 + paraphrases], true_right[1 + paraphrases :]]).float()
    figures = (("{}S", success), ("{}M", magnitude), ("{}S_acc", accuracy))
    return {
        name.format(which): of.mean().item()
        for name, values in figures
        for which, of in zip("EPN", split(values, parts), strict=True)
    }


COUNTERFACT = Suite(
    name="counterfact",
    parse=parse,
    score=score,
    parts_of_s=("ES", "PS", "NS"),
    shown=("ES_acc", "PS_acc", "NS_told", "portability"),
)
