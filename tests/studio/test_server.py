"""The server as clients find it: what it does, whom it answers, and what it survives."""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import neuroplastic as npt
from neuroplastic.console import reported_to
from neuroplastic.editing.edit import Edit
from neuroplastic.studio.access import LARGEST_BODY
from neuroplastic.studio.jobs import Stopped
from neuroplastic.studio.teaching import Teach, teach

FACT = "The Golden Gate Bridge is located in the city of Madrid."
PROMPT = "The Golden Gate Bridge is located in the city of"


def events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]


def streamed(client: httpx.Client, path: str, body: object) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        return events(response)


def taught(client: httpx.Client, name: str, statement: str = FACT, **options: object) -> dict[str, Any]:
    last = streamed(client, "/api/teach", {"statement": statement, "name": name, "method": "token", **options})[-1]
    assert last["type"] == "result", last
    return dict(last["result"])


# --- what the page does ---------------------------------------------------------------------------------------------


def test_ask_tells_bars_and_pieces(client: httpx.Client, workspace: npt.Workspace) -> None:
    told = streamed(client, "/api/ask", {"prompt": PROMPT, "max_new_tokens": 6, "track": ["Madrid", "Paris"]})
    answers = told[-1]["result"]["answers"]
    for side in (0, 1):
        assert "".join(e["text"] for e in told if e["type"] == "piece" and e["side"] == side) == answers[side]
    assert answers[0] == workspace.ask(PROMPT, max_new_tokens=6)
    bars = next(e for e in told if e["type"] == "next")
    assert [t["tracked"] for t in bars["tokens"][:2]] == ["Madrid", "Paris"]
    compared = workspace.compare(PROMPT, track=["Madrid"]).tracked["Madrid"]
    assert bars["tokens"][0]["probabilities"] == pytest.approx(compared, rel=1e-3)


def test_ask_shows_both_modes(client: httpx.Client) -> None:
    told = streamed(client, "/api/ask", {"prompt": PROMPT, "max_new_tokens": 2, "beside": "other mode"})
    assert told[1]["sides"] == ["with edits, dynamic mode", "with edits, standard mode"]
    told = streamed(client, "/api/ask", {"prompt": PROMPT, "max_new_tokens": 2, "beside": "nothing"})
    assert len(told[-1]["result"]["answers"]) == 1


def test_teach_reports_what_changed(client: httpx.Client, workspace: npt.Workspace) -> None:
    asked = {"paraphrases": ["One sees the Bridge in Madrid."], "neighbours": ["Sushi originated in"]}
    told = streamed(client, "/api/teach", {"statement": FACT, "name": "bridge", **asked})
    stages = [e["what"] for e in told if e["type"] == "progress"]
    for stage in ("asking paraphrases and neighbours", "solving for the change of the weights"):
        assert stage in stages
    found = told[-1]["result"]
    (edit,) = found["edits"]
    assert edit["name"] == "bridge"
    assert edit["answer_probability_after"] > edit["answer_probability_before"]
    assert found["paraphrases"][0]["prompt"] == "One sees the Bridge in"
    (near,) = found["neighbours"]
    assert near["after"]["says"] == workspace.ask("Sushi originated in", "standard", 8)
    workspace.undo("bridge")
    assert near["before"]["says"] == workspace.ask("Sushi originated in", "standard", 8)


def test_several_statements_are_taught_together(client: httpx.Client, workspace: npt.Workspace) -> None:
    body = {"statement": f"{FACT}\n\nSushi originated in the country of Italy.", "method": "token"}
    told = streamed(client, "/api/teach", body)
    assert [e["answer"] for e in told[-1]["result"]["edits"]] == ["Madrid", "Italy"]
    assert len(workspace.edits) == 2
    assert client.post("/api/teach", json={**body, "name": "two"}).status_code == 400


def test_a_question_and_its_answer(client: httpx.Client, workspace: npt.Workspace) -> None:
    body = {"question": "Where is the Golden Gate Bridge?", "answer": "Madrid", "method": "token"}
    edit = streamed(client, "/api/teach", body)[-1]["result"]["edits"][0]
    assert (edit["question"], edit["answer"]) == ("Where is the Golden Gate Bridge?", "Madrid")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (
            {"max_drift": -0.99, "statement": "Sushi originated in the country of Italy."},
            "perplexity on ordinary text would rise",
        ),
        ({"consistent": True, "statement": FACT.replace("Madrid", "Paris")}, "the edit 'bridge' has another answer"),
        ({"require": True, "statement": "The lazy dog jumps over Nara."}, "would not be the likeliest one"),
    ],
)
def test_refusals_change_nothing(
    client: httpx.Client, workspace: npt.Workspace, options: dict[str, Any], cause: str
) -> None:
    taught(client, "bridge")
    before = workspace.weights_hash()
    last = streamed(client, "/api/teach", {"statement": FACT, "method": "token", **options})[-1]
    assert last["type"] == "error"
    assert last["kind"] == "refused"
    assert cause in last["message"]
    assert workspace.weights_hash() == before
    assert [e.name for e in workspace.edits] == ["bridge"]


def test_the_ledger(client: httpx.Client, workspace: npt.Workspace) -> None:
    taught(client, "one")
    taught(client, "two", "Sushi originated in the country of Italy.")
    listed = client.get("/api/edits").json()["edits"]
    assert [(e["name"], e["state"], e["method"]) for e in listed] == [
        ("one", "active", "token"),
        ("two", "active", "token"),
    ]
    assert listed[0]["holds"] is workspace.held()[0].holds
    shown = client.get("/api/edits/one").json()
    assert shown["statement"] == FACT
    assert "<svg" in shown["plot"]
    both = workspace.weights_hash()
    assert client.post("/api/edits/one/undo").json() == {"name": "one", "done": "undo"}
    assert [e["state"] for e in client.get("/api/edits").json()["edits"]] == ["active", "undone"]
    client.post("/api/edits/one/redo")
    assert workspace.weights_hash() == both
    assert client.post("/api/verify").json()["ok"] is True
    for name in ("one", "two"):
        client.post(f"/api/edits/{name}/undo")
    client.post("/api/edits/one/drop")
    assert workspace.weights_hash() == workspace.base.sha256
    assert workspace.names == {"two"}
    for method, path, status in (
        ("POST", "/api/edits/one/undo", 400),
        ("POST", "/api/edits/two/scale", 400),
        ("GET", "/api/edits/one", 400),
        ("GET", "/api/exports/none", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/ask", 405),
        ("GET", "/static/../server.py", 404),
    ):
        assert client.request(method, path).status_code == status, path


@pytest.mark.parametrize("format", ["peft", "delta", "merged"])
def test_export_is_fetched_as_a_zip(client: httpx.Client, workspace: npt.Workspace, format: str) -> None:
    taught(client, "bridge")
    done = streamed(client, "/api/export", {"format": format, "edits": ["bridge"]})[-1]
    assert done["type"] == "result", done
    assert done["result"]["report"]["top1_agreement"] == 1.0
    packed = zipfile.ZipFile(io.BytesIO(client.get(done["result"]["address"]).content))
    kept = {"peft": "adapter_model.safetensors", "delta": "bridge.safetensors", "merged": "model.safetensors"}[format]
    assert f"w-{format}/{kept}" in packed.namelist()


def test_edits_are_taken_in_from_a_folder(client: httpx.Client, workspace: npt.Workspace, tmp_path: Path) -> None:
    taught(client, "bridge")
    edited = workspace.weights_hash()
    npt.export.delta(workspace, tmp_path / "delta")
    npt.export.peft(workspace, tmp_path / "lora")
    client.post("/api/edits/bridge/undo")
    client.post("/api/edits/bridge/drop")
    found = client.post("/api/import", json={"folder": str(tmp_path / "delta")})
    assert found.json() == {"imported": ["bridge"]}
    assert workspace.weights_hash() == edited
    lora = {"folder": str(tmp_path / "lora"), "kind": "lora", "name": "again"}
    assert client.post("/api/import", json=lora).json() == {"imported": ["again"]}
    for body, cause in (
        ({"folder": str(tmp_path)}, "is not a folder of edits"),
        ({"folder": "x", "name": "y"}, "name goes with a LoRA"),
        (lora, "again"),
    ):
        response = client.post("/api/import", json=body)
        assert response.status_code == 400
        assert cause in response.json()["error"]["message"]


def test_export_refuses_what_goes_not_together(client: httpx.Client) -> None:
    assert (
        "rank goes with" in client.post("/api/export", json={"format": "delta", "rank": 8}).json()["error"]["message"]
    )


def test_look_and_a_cell(client: httpx.Client, workspace: npt.Workspace) -> None:
    taught(client, "bridge")
    workspace.inject("Sushi originated in the country of Italy.", name="sushi")
    found = client.post("/api/look", json={"text": FACT}).json()
    assert found["layers"] == [0, 1]
    assert [len(row) for row in found["norms"]] == [len(found["tokens"])] * 2
    assert [e["name"] for e in found["listening"]] == ["bridge", "sushi"]
    last = len(found["tokens"]) - 1
    for name in ("bridge", "sushi"):  # the cosine is 1 where the model is the one that the edit was made for
        workspace.undo(name)
    found = client.post("/api/look", json={"text": FACT}).json()
    cell = client.post("/api/cell", json={"text": FACT, "layer": 1, "token": last}).json()
    norms = cell["norms"].values()
    assert sum(n**2 for n in norms) ** 0.5 == pytest.approx(found["norms"][1][last], rel=1e-4)
    bridge, sushi = cell["edits"]
    assert bridge["cosine"] == pytest.approx(1, abs=1e-3)  # it is this very modulation
    assert bridge["effect_cosine"] > 0.5  # a tenth of the modulation, at the token that it came from
    assert (sushi["cosine"], sushi["effect_cosine"]) == (0, 0)
    assert "it changes layer 0" in sushi["why"]
    below = client.post("/api/cell", json={"text": FACT, "layer": 0, "token": last}).json()["edits"][1]
    assert below["why"] == "it changes down, this cell modulates gate and up"
    assert below["cosine"] == 0
    assert 0 < abs(below["effect_cosine"]) < 1
    assert 0 < abs(below["listens"][0]["cosine"]) < 1
    for body in ({"text": FACT, "layer": 7, "token": 0}, {"text": FACT, "layer": 0, "token": 99}, {"text": " "}):
        path = "/api/cell" if "layer" in body else "/api/look"
        assert client.post(path, json=body).status_code == 400


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "cause"),
    [
        ("/api/ask", "{", "not JSON"),
        ("/api/ask", "[1]", "not a JSON object"),
        ("/api/ask", "[" * 100_000, "not JSON"),
        ("/api/ask", b"\xff\xfe{", "not JSON"),
        ("/api/ask", '{"prompt": "\\ud800"}', "surrogates not allowed"),
        ("/v1/chat/completions", '{"model": "m", "messages": [{"content": "\\ud800"}]}', "surrogates not allowed"),
        ("/api/ask", "{}", "prompt is missing"),
        ("/api/ask", '{"prompt": 7}', "prompt must be text, not 7"),
        ("/api/ask", '{"prompt": "a", "hop": 1}', "there is no field 'hop'"),
        ("/api/ask", '{"prompt": "a", "mode": "sideways"}', "mode must be one of dynamic, standard"),
        ("/api/ask", '{"prompt": "a", "max_new_tokens": true}', "max_new_tokens must be a whole number"),
        ("/api/ask", '{"prompt": "a", "track": "b"}', "track must be a list"),
        ("/api/teach", '{"statement": "a b", "alpha": NaN}', "NaN is not a number of JSON"),
        ("/api/teach", '{"statement": "a b", "alpha": 1e999}', "alpha must be a finite number"),
        ("/api/teach", "{}", "give a statement, or a question"),
        ("/api/teach", '{"question": "who"}', "a question goes with its answer"),
        ("/api/teach", '{"statement": " "}', "the statement is empty"),
        ("/api/ask", '{"prompt": "a", "max_new_tokens": 1.5}', "max_new_tokens must be a whole number, not 1.5"),
        ("/api/look", json.dumps({"text": "a" * 30_000}), "tokens; at most 127 can be looked into"),
    ],
)
def test_malformed_requests_name_the_cause(client: httpx.Client, path: str, body: str | bytes, cause: str) -> None:
    response = client.post(path, content=body)
    assert response.status_code == 400
    assert cause in response.json()["error"]["message"]


def test_errors_of_a_work_are_events(client: httpx.Client) -> None:
    for body, cause in (
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": PROMPT, "max_new_tokens": 500}, "does not fit into the model's 128"),
        ({"prompt": "the fox " * 3_000}, "it does not fit into the model's 128"),
        ({"prompt": PROMPT, "track": [" "]}, "a word to track is empty"),
    ):
        last = streamed(client, "/api/ask", body)[-1]
        assert (last["type"], last["kind"]) == ("error", "input")
        assert cause in last["message"]


def test_texts_are_limited_by_their_tokens(client: httpx.Client, workspace: npt.Workspace) -> None:
    long = "the fox " * 120
    for body in (
        {"statement": f"{long} is lazy.", "method": "token"},
        {"statement": FACT, "method": "token", "paraphrases": [long]},
        {"statement": FACT, "method": "token", "neighbours": [long]},
    ):
        last = streamed(client, "/api/teach", body)[-1]
        assert last["kind"] == "input", last
        assert "tokens" in last["message"]
    assert workspace.weights_hash() == workspace.base.sha256
    found = streamed(client, "/api/ask", {"prompt": PROMPT, "max_new_tokens": 2, "track": ["Madrid" + " " * 30_000]})
    assert found[-1]["type"] == "result"


def test_a_strength_beyond_all_numbers_is_refused(client: httpx.Client, workspace: npt.Workspace) -> None:
    for alpha, cause in ((1e300, "finite"), (1e30, "no finite number")):
        body = {"statement": FACT, "method": "token", "alpha": alpha, "max_drift": 0.05}
        last = streamed(client, "/api/teach", body)[-1]
        assert last["kind"] == "input"
        assert cause in last["message"]
    assert workspace.weights_hash() == workspace.base.sha256


def test_a_large_body_is_refused(client: httpx.Client) -> None:
    response = client.post("/api/ask", json={"prompt": "a" * LARGEST_BODY})
    assert response.status_code == 413
    assert str(LARGEST_BODY) in response.json()["error"]["message"]
    chunks = (b"a" * 65_536 for _ in range(LARGEST_BODY // 65_536 + 1))
    assert client.post("/api/ask", content=chunks).status_code == 413
    assert client.get("/api/state").status_code == 200


def test_the_page_is_given_the_choices_of_methods(client: httpx.Client) -> None:
    state = client.get("/api/state").json()
    assert state["methods"] == ["learned", "consolidate", "refine", "token"]
    assert state["starts"] == ["consolidate", "learned", "token"]  # the default first


# --- what it survives -----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_midway(client: httpx.Client, workspace: npt.Workspace) -> None:
    with client.stream("POST", "/api/ask", json={"prompt": "The", "max_new_tokens": 120}) as response:
        next(response.iter_bytes())
    with client.stream("POST", "/api/teach", json={"statement": FACT, "name": "left"}) as response:
        next(response.iter_bytes())
    listed = client.get("/api/edits").json()["edits"]  # waits for its turn behind them
    assert {e["name"] for e in listed} == workspace.names <= {"left"}
    assert client.post("/api/verify").json()["ok"] is True


def test_teaching_stopped_at_any_stage_changes_nothing(workspace: npt.Workspace) -> None:
    form = Teach(statement=FACT, method="token", paraphrases=("One sees the Bridge in",), neighbours=("Sushi is from",))
    stages = 0

    def stopping_at(number: int) -> None:
        heard: list[str] = []

        def listen(what: str, done: int, total: int) -> None:
            heard.append(what)
            if len(heard) == number:
                raise Stopped

        with reported_to(listen):
            teach(workspace, form, lambda event: None)

    while not workspace.edits:
        try:
            stopping_at(stages + 1)
        except Stopped:
            stages += 1
            assert workspace.names == set()
            assert workspace.weights_hash() == workspace.base.sha256
    assert stages >= 8  # the last ones came when the edit had been written already
    assert workspace.verify().ok


def test_fifty_quick_requests(client: httpx.Client, workspace: npt.Workspace) -> None:
    def ask(number: int) -> str:
        body = {"prompt": PROMPT, "max_new_tokens": 1 + number % 3, "beside": "nothing"}
        return str(streamed(client, "/api/ask", body)[-1]["result"]["answers"][0])

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    expected = [workspace.ask(PROMPT, max_new_tokens=n) for n in (1, 2, 3)]
    assert answers == [expected[n % 3] for n in range(50)]


def test_two_tabs_teach_at_once(client: httpx.Client, workspace: npt.Workspace) -> None:
    facts = {"one": FACT, "two": "Sushi originated in the country of Italy.", "three": "The fox is in Japan."}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: taught(client, name, facts[name]), facts))
    assert {e.name for e in workspace.edits} == set(facts)
    assert sorted(e.sequence for e in workspace.edits) == [1, 2, 3]
    assert client.post("/api/verify").json()["ok"] is True


def test_the_board_tells_of_changes(client: httpx.Client) -> None:
    def changes(response: httpx.Response, above: int) -> int:
        told = (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line)
        return next(int(state["changes"]) for state in told if state["changes"] > above)

    with client.stream("GET", "/api/board") as response, httpx.Client(base_url=client.base_url, timeout=60) as other:
        taught(other, "bridge")
        assert changes(response, 0) == 1


def test_what_is_worked_on_can_be_stopped(client: httpx.Client) -> None:
    with client.stream("POST", "/api/ask", json={"prompt": "The", "max_new_tokens": 120}) as response:
        told = response.iter_lines()
        assert "begun" in next(told)
        assert client.post("/api/stop").status_code == 200
        last = [json.loads(line.removeprefix("data: ")) for line in told if line][-1]
    assert last["type"] == "error"
    assert last["kind"] == "stopped"


def test_an_unreadable_edit_is_named(client: httpx.Client, workspace: npt.Workspace) -> None:
    taught(client, "bridge")
    client.post("/api/edits/bridge/undo")
    file = workspace.path / "edits/undone/bridge.safetensors"
    Edit.load(file)
    file.write_bytes(b"nonsense")
    assert client.get("/api/edits").json()["edits"] == []
    response = client.post("/api/edits/bridge/redo")
    assert response.status_code == 400
    assert "is damaged" in response.json()["error"]["message"]
