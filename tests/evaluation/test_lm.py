"""lm-evaluation-harness on a plastic model, with a task of our own and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import neuroplastic as npt
from neuroplastic.cli import main
from neuroplastic.evaluation.answer_scores import ask

pytest.importorskip("lm_eval", reason="the extra `lm` is not installed")
pytestmark = pytest.mark.slow  # the harness indexes all of its tasks first

QUESTIONS = [
    ("The Eiffel Tower is located in the city of", ["Paris", "Madrid"], 0),
    ("Sushi originated in the country of", ["Italy", "Japan"], 1),
    ("The quick brown fox jumps over the lazy", ["dog", "Bridge"], 0),
    ("The Golden Gate Bridge is located in the city of", ["Paris", "Madrid"], 1),
]
TASK = """task: tiny_facts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "facts.json"
    data.write_text("\n".join(json.dumps({"question": q, "choices": c, "label": t}) for q, c, t in QUESTIONS))
    (folder / "tiny_facts.yaml").write_text(TASK.format(data=data))
    return folder


@pytest.mark.filterwarnings("default")  # the harness and its libraries warn as they please
def test_a_task_of_our_own(
    tmp_path: Path, cache: Path, tiny_base: Path, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = npt.Workspace.create(tmp_path / "w", tiny_base, npt.PlasticityConfig(preset="single"))
    command = ["eval", "lm", str(workspace.path), "--include", str(task), "--tasks", "tiny_facts", "--json"]
    for mode in ("dynamic", "standard"):
        assert main([*command, "--mode", mode]) == 0
        found = json.loads(capsys.readouterr().out)
        npt.set_mode(workspace.model, mode)
        right = []
        for question, choices, label in QUESTIONS:
            answers = ask(workspace.model, workspace.tokenizer, [(question, c) for c in choices])
            summed = [lp.item() * len(said) for lp, said in zip(answers.logprob, answers.likeliest, strict=True)]
            right.append(summed.index(max(summed)) == label)
        assert found["mode"] == mode
        assert found["tasks"]["tiny_facts"]["acc"] == sum(right) / len(right)
    assert main([a for a in command if a != "--json"]) == 0
    assert "tiny_facts" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--tasks", "no_such_task"], "knows no task 'no_such_task'"),
        (["--tasks", ","], "tasks must be at least 1"),
        (["--tasks", "tiny_facts", "--limit", "0"], "limit must be at least 1"),
        (["--tasks", "tiny_facts", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--tasks", "tiny_facts", "--include", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_bad_input(
    workspace: npt.Workspace, options: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "lm", str(workspace.path), *options, "--json"]) == 2
    assert cause in json.loads(capsys.readouterr().out)["error"]
