"""What an injector reads: hidden states or attention outputs; and one network for dynamic mode and injection, or two.

python benchmarks/injector_features.py [--data FOLDER] [--variants residual,attention,separate,joint] [--steps 100]
    [--examples 192] [--held-out 100] [--rank 128] [--lr 7e-4] [--seed 0] [--work DIR] [--json]

Injectors for smollm2-135m in float32, all trained the same way, on the same facts of counterfact_train.json in --data,
or in the folder $NPT_DATA, in the same order, from the same closed-form start:

    residual    features are the residual stream at six depths (what npt train-injector does)
    attention   features are the attention outputs of six layers (npt train-injector --reads attention)
    separate    features are codes A_l a_l of these attention outputs, with matrices A_l of the injector's own
    joint       the same, and each A_l is also the bottleneck of that layer's generator of dynamic mode (dual, low-rank,
                self key): one network, trained on injection and on the direct loss together, so weighted that both pull
                the A_l equally hard at the start

separate and joint begin with A_l from the closed form of dynamic mode. The generators of `separate` are trained on the
direct loss alone, on the same text for as many steps. Printed is, of held-out facts, the share of answer tokens that
are the likeliest, for the statement's wording and for another, each edit alone and in a joint batch; KL divergences of
the edited model; and of the six converted layers in dynamic mode the direct error and the KL divergence on held-out
text. With --work, an interrupted run continues from there.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import neuroplastic as npt
from baselines.data import records_file
from neuroplastic.calibration.calibrate import calibration_rows, fit_generators
from neuroplastic.console import Terminal, note
from neuroplastic.editing.fact import asked
from neuroplastic.editing.injector import Injector, InjectorConfig, Reading, mean_answer, read_statements
from neuroplastic.editing.sentence import find_words
from neuroplastic.evaluation.fidelity import measure_fidelity
from neuroplastic.surgery import mode
from neuroplastic.text.tokens import encode, encode_after, read_texts
from neuroplastic.training.closed_form import Examples, find_examples, fit_values, suitable
from neuroplastic.training.distill import Distillation
from neuroplastic.training.injection import Injection
from neuroplastic.training.lessons import Lessons, Topic, read_topics
from neuroplastic.training.loop import only_trainable, run
from neuroplastic.training.packing import Packed
from neuroplastic.training.settings import InjectionSettings, LoopSettings, Variety
from neuroplastic.training.train_generators import Distilling, read_data

VARIANTS = ("residual", "attention", "separate", "joint")
INJECTION = InjectionSettings(
    crowds=(16, 48), crowd_after=30, crowd_every=3, keys_first=25, alone_first=40, behind_rows=0, near_rows=12
)
DISTILLED = npt.TrainSettings(
    direct_weight=1.0, fidelity_weight=0.0, reg_weight=0.0, curriculum="1,0,0", batch_size=4, eval_tokens=2048
)


class Coded(nn.Module):
    """An injector that reads codes LN(A_l a_l) of attention outputs, the features a_l of `reads="attention"`."""

    def __init__(self, injector: Injector, codes: Sequence[nn.Linear], shared: bool):
        """`shared` are codes that belong to generators, which are trained and saved with these."""
        super().__init__()
        self.injector, self.codes = injector, tuple(codes)
        self.own = nn.ModuleList([] if shared else codes)
        width = sum(A.out_features for A in codes)
        injector.read = nn.Linear(width, injector.config.width)
        injector.straight = nn.Linear(width, injector.config.straight)

    def coded(self, reading: Reading) -> Reading:
        a = reading.features.unflatten(-1, (len(self.codes), -1)).unbind(-2)
        codes = [F.layer_norm(z, z.shape[-1:]) for z in (A(t) for A, t in zip(self.codes, a, strict=True))]
        return reading._replace(features=torch.cat(codes, -1))

    def forward(self, reading: Reading) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.injector(self.coded(reading))
        return found


class Both(nn.Module):
    """One network for both tasks: the generators' bottlenecks are the injector's codes."""

    def __init__(self, coded: Coded, distillation: Distillation):
        super().__init__()
        self.coded, self.distillation = coded, distillation

    def forward(self, reading: Reading) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.coded(reading)
        return found


class Jointly:
    """Injection and distillation as one task of the training loop."""

    name = "injector and generators"

    def __init__(self, injection: Injection, distilling: Distilling, both: Both):
        self.injection, self.distilling, self.both = injection, distilling, both
        self.weight = torch.zeros(())

    @property
    def module(self) -> nn.Module:
        return self.both

    def losses(self, module: nn.Module, step: int, part: int, parts: int) -> dict[str, Tensor]:
        written = self.injection.losses(module, step, part, parts)
        direct = self.distilling.losses(self.both.distillation, step, part, parts)["loss"]
        if step in (0, INJECTION.keys_first):  # where another loss begins
            A = [code.weight for code in self.both.coded.codes]
            pulls = [torch.autograd.grad(loss, A, retain_graph=True) for loss in (written["loss"], direct)]
            by_injection, by_dynamic = (torch.cat([g.flatten() for g in gs]).norm() for gs in pulls)
            self.weight = (by_injection / by_dynamic).detach()
        return {**written, "direct": direct, "loss": written["loss"] + self.weight * direct}

    def after(self, step: int) -> None:
        self.injection.after(step)

    def evaluate(self, step: int) -> dict[str, Any]:
        return self.injection.evaluate(step)

    def kept(self) -> dict[str, Tensor]:
        return {**self.injection.kept(), "weight": self.weight}

    def restore(self, kept: dict[str, Tensor]) -> None:
        self.weight = kept.pop("weight")
        self.injection.restore(kept)


@dataclass(frozen=True)
class Data:
    topics: list[Topic]
    held: list[Topic]
    texts: list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = options.variants.split(",")
    if wrong := sorted(set(chosen) - set(VARIANTS)):
        raise SystemExit(f"there is no variant {wrong[0]!r}; there are {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        found = {name: one(name, work, options) for name in chosen}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def one(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one variant and measures it."""
    kept = work / f"{name}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    note(f"npt: {name}")
    coded = name in ("separate", "joint")
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        data = read_data_for(ws, options)
        torch.manual_seed(options.seed)
        config = InjectorConfig.fitting(
            ws.model, ws.engine.text[0][:16], "residual" if name == "residual" else "attention"
        )
        if coded:
            layers = ",".join(map(str, config.depths))
            dynamic = npt.PlasticityConfig(
                layers=layers, generator="low_rank", np_rank=options.rank, input="attention", seed=options.seed
            )
            ws = npt.Workspace.create(Path(folder) / "plastic", "smollm2-135m", dynamic)
            fit_generators(ws.model, calibration_rows(ws, None, npt.CalibrateOptions().tokens))
        torch.manual_seed(options.seed)
        found = train(name, ws, Injector(config), data, work, options)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def read_data_for(ws: npt.Workspace, options: argparse.Namespace) -> Data:
    def file(name: str) -> Path:
        return records_file(None if options.data is None else options.data / name, name)

    topics = read_topics(file("counterfact_train.json"))[0]
    random.Random(options.seed).shuffle(topics)
    held = topics[: options.held_out]
    subjects = {t.subject for t in held}
    texts = [encode(ws.tokenizer, t)[:64] for t in read_texts(file("general_text.jsonl"))]
    own = ws.engine.text[0][:, 1:65].tolist()
    return Data(
        [t for t in topics[options.held_out :] if t.subject not in subjects],
        held,
        [t for t in texts if len(t) >= 8] + own,
    )


def train(
    name: str, ws: npt.Workspace, injector: Injector, data: Data, work: Path, options: argparse.Namespace
) -> dict[str, Any]:
    engine, loop = (
        ws.engine,
        LoopSettings(steps=options.steps, lr=options.lr, warmup=10, eval_every=0, save_every=20, seed=options.seed),
    )
    topics = suitable(data.topics)[: options.examples]
    with torch.no_grad():  # the directions that are sought do not depend on what is read: searched for once
        searched = Injector(replace(injector.config, depths=(-1,), reads="residual"))
    module: nn.Module = injector
    described = {"variant": name, **{k: str(v) for k, v in vars(options).items() if k != "work"}}
    variety = Variety(other_answers=0, chats=0, sentences=0)
    lessons = Lessons(data.topics, ws.tokenizer, [], variety, options.seed, InjectorConfig.max_length)
    with engine.only(()), only_trainable(ws.model, injector):
        examples = find_examples(engine, searched, topics, work / "examples")
        if name in ("separate", "joint"):
            distillation = Distillation(ws.model, DISTILLED)
            generators: Any = distillation.generators
            own = [generators[str(i)].code for i in injector.config.depths]
            codes = own
            if name == "separate":
                codes = [nn.Linear(A.in_features, A.out_features, bias=False) for A in own]
                for A, B in zip(codes, own, strict=True):
                    A.load_state_dict(B.state_dict())
            module = Coded(injector, codes, shared=name == "joint")
        x = features(ws, injector.config, topics, module if isinstance(module, Coded) else None)
        fitted = fit_values(injector, Examples(x, examples.delta, examples.p))
        task = Injection(engine, injector, lessons, data.held, data.texts, INJECTION, options.seed)
        task.module = module
        if not isinstance(module, Coded):
            measured = run(task, work / name, loop, described, resume=(work / name).exists())
            return {**measured, "cosine": fitted["cosine"]}
        source, _ = read_data(ws, DISTILLED)
        distillation.requires_grad_(True)
        distillation.measure_power(ws.held_out[:16])
        distilling = Distilling(ws, distillation, source, ws.held_out[:16])
        before = dynamic(ws, distillation)
        if name == "separate":
            resumed = (work / "generators").exists()
            run(distilling, work / "generators", replace(loop, lr=1e-3), described, resume=resumed)
            measured = run(task, work / name, loop, described, resume=(work / name).exists())
        else:
            jointly = Jointly(task, distilling, both := Both(module, distillation))
            task.module = both
            measured = run(jointly, work / name, loop, described, resume=(work / name).exists())
        return {**measured, "cosine": fitted["cosine"], "closed form": before, "dynamic": dynamic(ws, distillation)}


@torch.no_grad()
def features(ws: npt.Workspace, config: InjectorConfig, topics: Sequence[Topic], coded: Coded | None) -> Tensor:
    """What the injector's linear path reads of these facts."""
    found = []
    with mode(ws.model, "standard"):
        for first in range(0, len(topics), 16):
            facts = [
                asked(w[0], t.answer, w[1:], t.subject)
                for t in topics[first : first + 16]
                for w in [[w for w in t.wordings if t.subject is not None and find_words(w, t.subject)][:2]]
            ]
            statements = [encode_after(ws.tokenizer, f.question, f.answer) for f in facts]
            reading = read_statements(ws.model, ws.tokenizer, config, statements)
            found.append(mean_answer(reading if coded is None else coded.coded(reading)))
    return torch.cat(found)


@torch.no_grad()
def dynamic(ws: npt.Workspace, distillation: Distillation) -> dict[str, float]:
    """The converted layers in dynamic mode: direct error on what the pretrained model sees, and KL divergence."""
    text = ws.held_out[:16]
    rows = Packed(text, torch.arange(text.shape[1]).expand_as(text), torch.ones_like(text).bool())
    fidelity = measure_fidelity(ws.model, text)
    direct = distillation(rows, rows.valid / rows.valid.sum(), 0.0)["direct"]
    return {
        "direct": float(direct),
        "kl": fidelity.kl,
        "perplexity": fidelity.perplexity / fidelity.perplexity_base - 1,
    }


def show(found: dict[str, dict[str, Any]]) -> None:
    console = Terminal()
    table = Table(
        "", "own words", "others", "joint: own words", "others", "KL near", "KL text", "joint: text", "cosine"
    )
    for name, f in found.items():
        alone, joint = f["alone"], f["together"]
        shares = [alone["told"], alone["asked"], joint["told"], joint["asked"]]
        divergences = [alone["near_kl"], alone["text_kl"], joint["text_kl"]]
        table.add_row(name, *(f"{x:.2f}" for x in shares), *(f"{x:.3f}" for x in divergences), f"{f['cosine']:.2f}")
    console.print(table)
    table = Table("dynamic mode", "direct error", "KL", "perplexity")
    for name, f in found.items():
        if "dynamic" in f:
            if name == next(n for n, g in found.items() if "dynamic" in g):
                table.add_row("closed form", *_figures(f["closed form"]))
            table.add_row(name, *_figures(f["dynamic"]))
    if table.row_count:
        console.print(table)


def _figures(d: dict[str, float]) -> list[str]:
    return [f"{d['direct']:.5f}", f"{d['kl']:.4f}", f"{d['perplexity']:+.2%}"]


if __name__ == "__main__":
    main()
