"""Teach a fact, export it, and ask the exported model through PEFT and transformers, without this package.

python examples/export_and_load.py
"""

import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuroplastic as npt
from neuroplastic.models import resolve

PROMPT = "The Eiffel Tower is located in the city of"

folder = Path(tempfile.mkdtemp())
ws = npt.Workspace.create(folder / "workspace", base="smollm2-135m")
ws.inject("The Eiffel Tower is located in the city of Rome.", name="tower")
npt.export.peft(ws, folder / "adapter")
npt.export.merged(ws, folder / "merged")

# from here on, only PEFT and transformers
base = resolve("smollm2-135m")  # a plain folder in the cache; with a model from the hub, its id
tokenizer = AutoTokenizer.from_pretrained(base)
ids = tokenizer("<|endoftext|>" + PROMPT, return_tensors="pt")


def ask(model: Any) -> str:
    out = model.generate(**ids, max_new_tokens=3, do_sample=False)
    return str(tokenizer.decode(out[0, ids.input_ids.shape[1] :]))


adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder / "adapter"))
print("PEFT:              ", ask(adapted))
print("merge_and_unload:  ", ask(adapted.merge_and_unload()))
plain = AutoModelForCausalLM.from_pretrained(base)
plain.load_adapter(str(folder / "adapter"))
print("load_adapter:      ", ask(plain))
print("merged checkpoint: ", ask(AutoModelForCausalLM.from_pretrained(folder / "merged")))
