"""A PEFT LoRA on MLP projections becomes an edit: listed, scaled, undone and combined like any other."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import Place
from ..editing.edit import Edit, Factors, check_name, name_from
from ..errors import NPTError
from ..files import read_json, refuse_pointer
from ..models import canonical
from .export_report import projection_names
from .peft_adapter import PREFIX, WEIGHTS

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
"""Settings of adapter_config.json that say what the factors do, and are obeyed."""
PLACES = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
"""Settings that choose modules; PEFT leaves out factors of others, so such files are refused."""
TRAINING = {"auto_mapping", "ensure_weight_tying", "inference_mode", "lora_dropout", "megatron_core", "peft_version"}
TRAINING |= {"qalora_group_size", "revision", "runtime_config", "task_type", "velora_config", "eva_config"}
TRAINING |= {"corda_config", "loftq_config", "lora_ga_config"}  # of an init_lora_weights, which is looked at itself
"""Settings of training, and book-keeping: a trained adapter does the same whatever they are."""
INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the pretrained weights as they are. Others move a part of them into the
adapter, which then is a difference from weights that this model does not have."""
KEY = re.compile(re.escape(PREFIX) + r"(.+)\.lora_(A|B)(?:\.default)?\.weight")


def import_lora(
    ws: Workspace, source: str | Path, name: str | None = None, alpha: float = 1.0, any_base: bool = False
) -> Edit:
    """Takes the adapter folder `source` in as one edit, scaled by alpha; its own scale (lora_alpha / r) is applied.

    Raises NPTError, with nothing changed, for what is not a plain LoRA on MLP projections of this base. Adapters name
    their base; another name than the workspace's is refused unless `any_base`, another content hash always.
    """
    source = Path(source)
    if not math.isfinite(alpha) or alpha == 0:
        raise NPTError(f"alpha must be a finite number other than 0, not {alpha}")
    config = _config(source)
    tensors, metadata = _tensors(source)
    _check_base(ws, source, config, metadata, any_base)
    places = projection_names(ws)
    pairs: dict[Place, dict[str, Tensor]] = {}
    ranks: dict[Place, int] = {}
    scales: dict[Place, float] = {}
    for key, tensor in tensors.items():
        m = KEY.fullmatch(key)
        if m is None or m[1] not in places:
            raise NPTError(
                f"{source} changes {key!r}, which is not an MLP projection of this model; only these can be edits"
            )
        if not _targeted(config, m[1]):
            raise NPTError(f"{source} holds factors of {m[1]!r}, which its adapter_config.json leaves out")
        pairs.setdefault(places[m[1]], {})[m[2]] = tensor
        ranks[places[m[1]]], scales[places[m[1]]] = _rank_and_scale(source, config, m[1])
    factors: dict[Place, Factors] = {}
    for place, pair in sorted(pairs.items()):
        if set(pair) != {"A", "B"}:
            raise NPTError(f"{source} is damaged: layer {place[0]}, {place[1]} has only one of lora_A and lora_B")
        A, B = pair["A"].float(), pair["B"].float() * (scales[place] * alpha)
        if A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1]:
            raise NPTError(
                f"{source} is damaged: lora_A and lora_B of layer {place[0]}, {place[1]} do not fit together"
            )
        if len(A) != ranks[place]:
            raise NPTError(
                f"{source} is damaged: the factors of layer {place[0]}, {place[1]} have rank {len(A)}, and "
                f"adapter_config.json says {ranks[place]}"
            )
        if not (A.isfinite().all() and B.isfinite().all()):
            raise NPTError(f"{source} is damaged: the factors of layer {place[0]}, {place[1]} are not finite")
        if B.any():  # exports fill sites that an edit does not use with zeros
            factors[place] = Factors(A.contiguous(), B.contiguous())
    if not factors:
        raise NPTError(f"{source} changes nothing: every lora_B is zero")
    taken = set(ws.names)
    (edit,) = ws.add(
        [
            Edit(
                name=check_name(name) if name is not None else name_from(source.name, taken),
                statement=f"LoRA {source.name}",
                method="lora",
                alpha=alpha,
                base=ws.base.sha256,
                sequence=0,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                factors=factors,
            )
        ]
    )
    return edit


def _config(source: Path) -> Any:
    """The adapter's settings. Raises NPTError for whatever a plain LoRA does not have, known to PEFT or not."""
    from peft import LoraConfig

    file = source / "adapter_config.json"
    if not file.is_file():
        raise NPTError(f"{str(source)!r} is not an adapter folder: it has no adapter_config.json")
    refuse_pointer(file)
    settings = read_json(file)
    if settings.get("peft_type") != "LORA":
        raise NPTError(f"{source} is a {settings.get('peft_type')} adapter; only LoRA can become an edit")
    if settings.get("bias", "none") != "none":
        raise NPTError(f"{source} trains biases, which a weight edit cannot express")
    if settings.get("init_lora_weights") not in INITS:
        raise NPTError(
            f"{source} sets init_lora_weights to {settings['init_lora_weights']!r}, which changes the pretrained "
            "weights too; save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    for name, value in settings.items():
        if value and name not in READ | PLACES | TRAINING | {"bias", "init_lora_weights"}:
            raise NPTError(f"{source} sets {name}, which a weight edit cannot express or this version does not know")
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    try:
        config: Any = LoraConfig(**{n: v for n, v in settings.items() if n in known})
        if config.target_modules is None:
            raise ValueError("it names no target_modules")
        for number in (config.r, config.lora_alpha, *config.rank_pattern.values(), *config.alpha_pattern.values()):
            if isinstance(number, bool) or not math.isfinite(number):
                raise ValueError(f"{number!r} is no rank and no lora_alpha")
        for pattern in (*config.rank_pattern, *config.alpha_pattern):
            re.compile(pattern)
        _targeted(config, "")  # patterns of modules are regular expressions too
    except (OSError, ValueError, TypeError, KeyError, AttributeError, re.error) as e:
        raise NPTError(f"{file} is damaged: {str(e).splitlines()[0]}") from None
    return config


def _targeted(config: Any, module: str) -> bool:
    """Whether PEFT would put the adapter's factors at this module."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return config.target_modules == "all-linear" or bool(check_target_module_exists(config, module))


def _tensors(source: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    refuse_pointer(source / WEIGHTS)
    if not (source / WEIGHTS).is_file():
        raise NPTError(f"{source} has no {WEIGHTS}; pickled adapters are not read, save it as safetensors")
    try:
        with safe_open(str(source / WEIGHTS), framework="pt") as f:
            return {name: f.get_tensor(name).clone() for name in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise NPTError(f"{source / WEIGHTS} is damaged: {e}") from None


def _check_base(ws: Workspace, source: Path, config: Any, metadata: Mapping[str, str], any_base: bool) -> None:
    known = metadata.get("npt_base")
    if known is not None and known != ws.base.sha256:
        raise NPTError(
            f"{source} was made for another base model ({known[:12]}, the workspace's is {ws.base.sha256[:12]})"
        )
    named = config.base_model_name_or_path
    if known is None and not any_base and (named is None or canonical(named) != ws.base.spec):
        raise NPTError(
            f"{source} names {named!r} as its base, the workspace is of {ws.base.spec!r}; if they are the same "
            "model, say --any-base"
        )


def _rank_and_scale(source: Path, config: Any, module: str) -> tuple[int, float]:
    """r of one module, and lora_alpha / r (lora_alpha / sqrt(r) with rank-stabilised LoRA), patterns applied as PEFT
    does."""

    def of(pattern: Mapping[str, Any], default: float) -> float:
        for key, value in pattern.items():
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return float(value)
        return float(default)

    r, lora_alpha = of(config.rank_pattern, config.r), of(config.alpha_pattern, config.lora_alpha)
    if r < 1 or r != int(r):
        raise NPTError(f"{source / 'adapter_config.json'} is damaged: {r} is no rank")
    return int(r), lora_alpha / (math.sqrt(r) if config.use_rslora else r)
