"""Ten lines: a model, a fact, a question, and the fact taken back.

python examples/ten_lines.py
"""

import tempfile

import neuroplastic as npt

ws = npt.Workspace.create(tempfile.mkdtemp(), base="smollm2-135m", config=npt.PlasticityConfig(preset="dual"))
print(ws.ask("You can visit the Eiffel Tower in the city of", max_new_tokens=6))
edit = ws.inject("The Eiffel Tower is located in the city of Rome.", name="tower")
print(ws.ask("You can visit the Eiffel Tower in the city of", max_new_tokens=6))
ws.undo("tower")
print(ws.weights_hash() == ws.base.sha256)
