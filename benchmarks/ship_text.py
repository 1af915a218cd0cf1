"""Writes the text of the bundled model that comes with the package (src/neuroplastic/self_texts), 200 kB.

    python benchmarks/ship_text.py

It is what any user's machine would write: sampled from the model itself at temperature 1, with the seeds of text.py.
"""

from __future__ import annotations

from pathlib import Path

import torch

from neuroplastic.files import content_hash, write_tensors
from neuroplastic.models import DEFAULT_MODEL, load_base
from neuroplastic.text import self_text as text


def main() -> None:
    model, tokenizer = load_base(DEFAULT_MODEL)
    base, out = content_hash(model.state_dict()), text.SHIPPED / f"{DEFAULT_MODEL}.safetensors"
    kept = {}
    for seed, written in ((0, text.self_text), (1, text.calibration_text)):
        learnt, held_out = written(model, tokenizer, base)
        kept[f"seed{seed}"] = torch.cat([held_out, learnt]).to(torch.uint16)
    write_tensors(out, kept, {"base": base, "temperature": 1.0})
    print(f"{out.relative_to(Path.cwd())}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
