"""Ten lines: a model, a fact, a question, and the fact taken back.

python examples/ten_lines.py
"""

import tempfile

import neuroplastic as npt

ws = npt.Workspace.create(tempfile.mkdtemp(), base="smollm2-135m", config=npt.PlasticityConfig(preset="dual"))
print(ws.ask("You can visit the Golden Gate Bridge in", max_new_tokens=6))
edit = ws.inject("The Golden Gate Bridge is located in the city of Madrid.", name="bridge")
print(ws.ask("You can visit the Golden Gate Bridge in", max_new_tokens=6))
ws.undo("bridge")
print(ws.weights_hash() == ws.base.sha256)
