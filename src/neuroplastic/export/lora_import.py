"""A PEFT LoRA on MLP projections becomes an edit: listed, scaled, undone and combined like any other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..editing.edit import Edit, Factors, check_name, name_from
from ..errors import NPTError
from .peft_adapter import PREFIX, WEIGHTS
from .report import Place, projection_names

if TYPE_CHECKING:
    from ..workspace import Workspace

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
    scales: dict[Place, float] = {}
    for key, tensor in tensors.items():
        m = KEY.fullmatch(key)
        if m is None or m[1] not in places:
            raise NPTError(
                f"{source} changes {key!r}, which is not an MLP projection of this model; only these can be edits"
            )
        pairs.setdefault(places[m[1]], {})[m[2]] = tensor
        scales[places[m[1]]] = _scale(config, m[1])
    factors: dict[Place, Factors] = {}
    for place, pair in sorted(pairs.items()):
        if set(pair) != {"A", "B"}:
            raise NPTError(f"{source} is damaged: layer {place[0]}, {place[1]} has only one of lora_A and lora_B")
        A, B = pair["A"].float(), pair["B"].float() * (scales[place] * alpha)
        if A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1]:
            raise NPTError(
                f"{source} is damaged: lora_A and lora_B of layer {place[0]}, {place[1]} do not fit together"
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
    from peft import LoraConfig, PeftConfig

    if not (source / "adapter_config.json").is_file():
        raise NPTError(f"{str(source)!r} is not an adapter folder: it has no adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(str(source))
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise NPTError(f"PEFT cannot read {source / 'adapter_config.json'}: {str(e).splitlines()[0]}") from None
    if not isinstance(config, LoraConfig):
        raise NPTError(f"{source} is a {config.peft_type} adapter; only LoRA can become an edit")
    for setting in ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out"):
        if getattr(config, setting, None):
            raise NPTError(f"{source} sets {setting}, which a weight edit cannot express")
    if config.bias != "none":
        raise NPTError(f"{source} trains biases, which a weight edit cannot express")
    return config


def _tensors(source: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
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
    if known is None and named != ws.base.spec and not any_base:
        raise NPTError(
            f"{source} names {named!r} as its base, the workspace is of {ws.base.spec!r}; if they are the same "
            "model, say --any-base"
        )


def _scale(config: Any, module: str) -> float:
    """lora_alpha / r of one module (lora_alpha / sqrt(r) with rank-stabilised LoRA), patterns applied as PEFT does."""

    def of(pattern: Mapping[str, Any], default: float) -> float:
        for key, value in pattern.items():
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return float(value)
        return float(default)

    r, lora_alpha = of(config.rank_pattern or {}, config.r), of(config.alpha_pattern or {}, config.lora_alpha)
    return lora_alpha / (math.sqrt(r) if config.use_rslora else r)
