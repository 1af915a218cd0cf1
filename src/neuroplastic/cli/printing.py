"""What the command line shows a person: one function per result, from the same mapping that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from ..console import Terminal
from .common import size_in_words


def info(console: Terminal, r: dict[str, Any]) -> None:
    p = r["plasticity"]
    layers, plastic = r["num_layers"], r["plastic_layers"]
    table = Table(title=r["path"], show_header=False, title_justify="left")
    table.add_row(
        "base",
        f"{r['base']['spec']} ({r['architecture']}, {r['parameters'] / 1e6:.1f}M, {r['base']['dtype']})",
    )
    table.add_row("content hash", r["base"]["sha256"][:16])
    table.add_row("plastic layers", f"{len(plastic)} of {layers}: {', '.join(map(str, plastic))}")
    axes = f"modulation {p['modulation']}, MLP input {p['mlp_input']}, attention residual {p['attention_residual']}"
    table.add_row("preset", f"{p['preset']}: {axes}")
    low_rank = f", np_rank {p['np_rank']}, num_ranks {p['num_ranks']}, key {p['key']}, input {p['input']}"
    if p["rank_weights"] != "fixed":
        low_rank += f", rank_weights {p['rank_weights']}" + (f" (top {p['top_ranks']})" if p["top_ranks"] else "")
    if p["gate"] != "none":
        low_rank += f", gate {p['gate']} (threshold {p['gate_threshold']:g})"
    if p["coarse_rank"]:
        low_rank += f", coarse_rank {p['coarse_rank']} for {p['coarse_group'] or 'all'} layers"
    if p["heads"] != "own":
        low_rank += f", heads {p['heads']}"
    generator = p["generator"] + (low_rank if p["generator"] == "low_rank" else "")
    table.add_row("generator", f"{generator} ({r['generator_parameters']:,} parameters)")
    if p["layer_overrides"]:
        table.add_row("layers of their own", "\n".join(p["layer_overrides"]))
    table.add_row("edits", ", ".join(r["edits"]) or "none")
    if r["undone"]:
        table.add_row("undone", ", ".join(r["undone"]))
    console.print(table)


def fidelity(console: Terminal, r: dict[str, Any]) -> None:
    table = Table(title=f"dynamic mode against the base, {r['tokens']} tokens", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("perplexity of the base", f"{r['perplexity_base']:.4f}")
    table.add_row("perplexity", f"{r['perplexity']:.4f}")
    table.add_row("KL, nats per token", f"{r['kl']:.3g}")
    table.add_row("same likeliest token", f"{r['top1_agreement']:.2%}")
    table.add_row("largest logit difference", f"{r['max_logit_error']:.3g}")
    errors = r["per_layer_error"]
    worst = max(errors, key=errors.__getitem__)
    table.add_row(f"largest relative error of a layer's output (layer {worst})", f"{errors[worst]:.3g}")
    console.print(table)
    _agreements(console, "tokens before", r["by_position"])
    if r["by_layer"]:
        _agreements(console, "layer alone", r["by_layer"])
    if r["usage"]:
        table = Table("layer", "components of a token, quartiles", "gate, quartiles", "tokens modulated")
        for layer, u in r["usage"].items():
            quartiles = (" ".join(f"{x:.2f}" for x in u[name]) for name in ("components", "gate"))
            table.add_row(layer, *quartiles, f"{u['modulated']:.1%}")
        console.print(table)


def _agreements(console: Terminal, what: str, found: dict[str, Any]) -> None:
    table = Table(what, "tokens", "perplexity ratio", "KL", "same likeliest")
    for name, a in found.items():
        ratio, kl, same = f"{a['perplexity_ratio']:.4f}", f"{a['kl']:.3g}", f"{a['top1_agreement']:.2%}"
        table.add_row(name, str(a["tokens"]), ratio, kl, same)
    console.print(table)


def sweep(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("preset", "generator", "parameters", "perplexity", "KL", "likeliest", "logits")
    for row in r["rows"]:
        rank = "" if row["np_rank"] is None else f" {row['np_rank']}"
        made = (row["preset"], row["generator"] + rank, f"{row['parameters']:,}")
        if row["refused"]:
            table.add_row(*made, f"refused: {row['refused']}")
            continue
        ratio, kl, same = f"x {row['perplexity_ratio']:.4g}", f"{row['kl']:.3g}", f"{row['top1_agreement']:.2%}"
        table.add_row(*made, ratio, kl, same, f"{row['max_logit_error']:.2g}")
    console.print(table)


def calibration(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("layers", "rank", "share of the payload's power explained")
    for layer, rank in r["ranks"].items():
        table.add_row(layer, str(rank), f"{r['explained'][layer]:.2%}")
    console.print(table)
    rise = r["perplexity"] / r["perplexity_base"] - 1
    console.print(
        f"perplexity on held-out text: {r['perplexity_base']:.2f} base, {r['perplexity']:.2f} calibrated ({rise:+.2%})"
    )
    console.print(f"{r['generator_parameters']:,} parameters from {r['tokens']:,} tokens in {r['seconds']:.1f} s")
    for lost in r["out_of_reach"]:
        console.print_styled(("cannot be the pretrained model with any rank", "yellow"), f": {lost}")


def training(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("on held-out text", "before", "after")
    for name, after in r["after"].items():
        if isinstance(after, float):
            table.add_row(name, f"{r['before'][name]:.4g}", f"{after:.4g}")
    console.print(table)
    for prompt, written in r["after"]["sampled"].items():
        console.print(f"{prompt}{written}", soft_wrap=True)
    console.print(f"log, checkpoint and curves: {r['folder']}")


def edit(console: Terminal, r: dict[str, Any]) -> None:
    if not r.get("changed", True):
        console.print_styled((r["name"], "bold"), " teaches this already; nothing was changed")
        return
    about = f" at {r['subject']!r}" if r["subject"] else ""
    console.print_styled(
        (r["name"], "bold"),
        f": written into {len(r['layers'])} layers{about} by {r['method']} in {r['seconds']:.2f} s",
    )
    for key, what in (
        ("answer_probability", f"probability of {r['answer']!r} after {r['question']!r}"),
        ("elsewhere_probability", "the same after unrelated text"),
    ):
        before, after = r[f"{key}_before"], r[f"{key}_after"]
        console.print(f"{what}: {before:.1%} before, {after:.1%} after")
    if not r["holds"]:
        console.print_styled(("it did not take", "yellow"), ": the answer is not the likeliest one")
    console.print(f"perplexity on ordinary text: {r['perplexity_drift']:+.2%}")
    if r.get("replaces"):
        console.print(f"takes the place of the edit {', '.join(r['replaces'])}, which undo brings back")
    if r["contradicts"]:
        console.print_styled(("contradicts", "yellow"), f" the edit {', '.join(r['contradicts'])}")
    console.print(size_in_words(r))


def many(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("edit", "answer", "before", "after", "replaces", "contradicts")
    for e in r["edits"]:
        before, after = (f"{e[f'answer_probability_{when}']:.1%}" for when in ("before", "after"))
        table.add_row(
            e["name"], e["answer"], before, after, *(", ".join(e.get(k, ())) for k in ("replaces", "contradicts"))
        )
    console.print(table)
    seconds, drift = sum(e["seconds"] for e in r["edits"]), r["edits"][-1]["perplexity_drift"]
    console.print(f"made in {seconds:.1f} s; perplexity on ordinary text: {drift:+.2%}")


def one_edit(console: Terminal, r: dict[str, Any]) -> None:
    table = Table(title=r["name"], show_header=False, title_justify="left")
    for key in ("state", "statement", "method", "alpha", "created", "norm"):
        table.add_row(key, f"{r[key]:.4g}" if isinstance(r[key], float) else str(r[key]))
    for key in ("statement_logprob", "answer_probability"):
        if f"{key}_before" in r:
            table.add_row(key, f"{r[f'{key}_before']:.3g} before, {r[f'{key}_after']:.3g} after")
    for layer, sites in r.get("relative_norm", {}).items():
        table.add_row(f"layer {layer}, |dW|/|W|", ", ".join(f"{site} {v:.2%}" for site, v in sites.items()))
    console.print(table)


def verification(console: Terminal, r: dict[str, Any]) -> None:
    for claim, key in (("the base model is unchanged", "base_unchanged"), ("the weights are exact", "weights_exact")):
        console.print_styled(("yes", "green") if r[key] else ("NO ", "red"), f" {claim}")
    for name, why in r["refused"].items():
        console.print_styled((name, "red"), f": {why}")
    if r["facts"]:
        table = Table("edit", "answer", "still holds", "probability")
        for f in r["facts"]:
            table.add_row(f["name"], f["answer"], "yes" if f["holds"] else "no", f"{f['answer_probability']:.1%}")
        console.print(table)


def export(console: Terminal, r: dict[str, Any]) -> None:
    console.print_styled((r["path"], "bold"), f": {r['format']}, {', '.join(r['edits'])}")
    if r["rank"] is not None:
        console.print(f"rank {r['rank']}, dropping {r['dropped_energy']:.1e} of the squared norm")
    console.print(
        f"loaded again and compared on the statements: largest logit difference {r['max_logit_error']:.1e}, same "
        f"likeliest token at {r['top1_agreement']:.1%} of the positions ({r['seconds']:.1f} s)"
    )
    if (lost := r["ungated"]) is not None:
        console.print(
            f"{r['format']} knows no gates, so these edits answer a little to every token there: "
            f"{lost['holding_ungated']:.0%} of them hold (with gates {lost['holding_gated']:.0%}), perplexity on "
            f"ordinary text is {lost['perplexity_ungated']:.2f} (with gates {lost['perplexity_gated']:.2f}); --format "
            "widened keeps the gates"
        )


def edits(console: Terminal, r: dict[str, Any]) -> None:
    if not r["edits"] and not r["undone"]:
        console.print("no edits")
        return
    table = Table("name", "state", "method", "alpha", "made (UTC)", "statement")
    for state, listed in (("active", r["edits"]), ("undone", r["undone"])):
        for e in listed:
            when = e["created"][:16].replace("T", " ")
            table.add_row(e["name"], state, e["method"], f"{e['alpha']:g}", when, e["statement"])
    console.print(table)


def comparison(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("without the edits", "with them", title=r["prompt"], title_justify="left")
    table.add_row(*(" ".join(r[k].split()) for k in ("unedited", "edited")))
    console.print(table)
    if r["tracked"]:
        probabilities(console, {word: (p["unedited"], p["edited"]) for word, p in r["tracked"].items()})


def probabilities(console: Terminal, found: dict[str, tuple[float, float]]) -> None:
    """Next-token probabilities, before and after."""
    table = Table("next token", "before", "after")
    for word, (before, after) in found.items():
        table.add_row(repr(word), f"{before:.2%}", f"{after:.2%}")
    console.print(table)


def tasks(console: Terminal, r: dict[str, Any]) -> None:
    table = Table("task", "metric", "value", "standard error")
    for task, metrics in r["tasks"].items():
        for name, value in metrics.items():
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                table.add_row(task, name, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    console.print(table)


WRITTEN = ("es_gen", "ps_gen", "entropy")
COSTS = {
    "seconds": "teaching, s",
    "asking": "asking, s",
    "per_question": "a question, s",
    "context_tokens": "context tokens",
    "perplexity": "perplexity",
    "kl": "KL",
    "perplexity_text": "perplexity, given text",
    "kl_text": "KL, given text",
    "peak": "peak, MB",
}

UNSHOWN = ("asking", "peak")
"""Costs that a comparison leaves out."""
WIDEST, BETWEEN = 64, 3
"""Characters that the heads of columns, with what is between two of them, may take in one table: with the method's name
they fit into a terminal of 80."""


def evaluation(console: Terminal, r: dict[str, Any], main: Sequence[str], more: Sequence[str]) -> None:
    """Records asked one by one (`methods`) or edits in a row (`steps`): a table of the figures named in `main`, with
    their intervals, one or several of those in `more` and one of what it costs."""
    from ..evaluation.report import entries

    if r.get("ceiling") is not None:
        console.print(f"{len(r['records'])} records; ceiling of S {r['ceiling']:.3f}")
    listed, in_a_row = list(entries(r)), "steps" in r
    present = {name for _, _, figures in listed for name in figures}
    more = [n for n in (*more, *WRITTEN) if n in present]
    costs = [n for n in COSTS if n in present and n not in more]
    for shown in ([n for n in main if n in present], *_side_by_side(more), *_side_by_side(costs)):
        table = Table("method", *(["edits"] if in_a_row else []), *(COSTS.get(n, n) for n in shown))
        for method, edits, figures in listed:
            cells = [_cell(n, figures[n], n in main) if n in figures else "" for n in shown]
            table.add_row(method, *([str(edits)] if in_a_row else []), *cells)
        console.print(table)
    for s in r.get("steps", []):
        if s["asked"] < s["edits"] and not s["first"]:
            console.print(f"{s['method']}: of {s['edits']} edits a sample of {s['asked']} was asked")
    refusals(console, r)
    for reason in r["missing"]:
        console.print(reason)


def _side_by_side(names: Sequence[str]) -> list[list[str]]:
    """The names of figures, table by table, as many in each as fit. There is none without a name."""
    tables: list[list[str]] = [[]] if names else []
    for name in names:
        if tables[-1] and sum(len(COSTS.get(n, n)) + BETWEEN for n in (*tables[-1], name)) > WIDEST:
            tables.append([])
        tables[-1].append(name)
    return tables


def comparisons(console: Terminal, r: dict[str, Any]) -> None:
    """Tables for each suite: the parts of S and S with its interval; shares of a reader's figures, and what each method
    costs."""
    for name, own in r["suites"].items():
        present = {n for m in own["methods"].values() for n in m["figures"]}
        parts = [n for n in own["parts_of_s"] if n in present]
        more = [n for n in (*own["shares"], *(c for c in COSTS if c not in UNSHOWN)) if n in present]
        console.print(f"{name}: {len(own['records'])} records")
        for shown in ([*parts, "S"], *_side_by_side(more)):
            table = Table("method", *(COSTS.get(n, n) for n in shown))
            for method, found in own["methods"].items():
                figures = found["figures"]
                table.add_row(method, *(_cell(n, figures[n], n == "S") if n in figures else "" for n in shown))
            console.print(table)
        refusals(console, own)
        for reason in own["missing"]:
            console.print(reason)


def refusals(console: Terminal, r: dict[str, Any]) -> None:
    """What methods could not teach, or not as a whole: the records that share a reason on one line."""
    from ..evaluation.report import refusals as listed

    for (method, why), records in _sharing(listed(r)).items():
        console.print(f"{method} could not teach {', '.join(records)}, asked without it: {why}")
    for (method, why), records in _sharing(listed(r, "untaught")).items():
        console.print(f"{method}, of {', '.join(records)}: {why}")


def _sharing(listed: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    """The records of each method and reason, from (method, record, reason)."""
    shared: dict[tuple[str, str], list[str]] = {}
    for method, record, why in listed:
        shared.setdefault((method, why), []).append(record)
    return shared


def _cell(name: str, figure: Sequence[float], with_interval: bool) -> str:
    mean = figure[0]
    if with_interval:
        return f"{mean:.3f} [{figure[1]:.2f}, {figure[2]:.2f}]"
    if name.startswith("perplexity"):
        return f"{mean:+.2%}"
    return f"{mean / 2**20:.0f}" if name == "peak" else f"{mean:.2g}" if name.startswith("kl") else f"{mean:.2f}"
