"""The command line as a user meets it: real processes where that is the point, `main` in-process elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from neuroplastic.cli import main

FACT = "The Golden Gate Bridge is located in the city of Madrid."


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any, str]:
    """Exit status, parsed standard output, standard error of `npt ARGS --json`."""
    try:
        status = main([str(a) for a in args] + ["--json"])
    except SystemExit as e:
        status = int(e.code or 0)
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


@pytest.fixture
def made(tmp_path: Path, cache: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["convert", str(tiny_base), str(tmp_path / "w"), "--json"]) == 0
    capsys.readouterr()
    return tmp_path / "w"


@pytest.mark.parametrize(
    "args", [["--help"], ["convert", "--help"], ["fidelity", "--help"], ["edits", "--help"], ["inject", "--help"]]
)
def test_help_needs_no_torch(args: list[str]) -> None:
    code = (
        "import sys; from neuroplastic.cli import main\n"
        f"try: main({args})\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: npt" in done.stdout


def test_a_whole_life(made: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, info, _ = run(capsys, "info", made)
    assert (status, info["plastic_layers"], info["edits"]) == (0, [0, 1], [])
    assert info["base"]["spec"] == str(tiny_base)
    status, fidelity, _ = run(capsys, "fidelity", made)
    assert status == 0
    expected = {
        "tokens",
        "perplexity_base",
        "perplexity",
        "kl",
        "top1_agreement",
        "max_logit_error",
        "per_layer_error",
        "perplexity_ratio",
        "by_position",
        "by_layer",
        "usage",
    }
    assert set(fidelity) == expected
    status, before, _ = run(capsys, "ask", made, "The Golden Gate", "--max-new-tokens", 4)
    assert (status, before["prompt"], before["mode"]) == (0, "The Golden Gate", "dynamic")
    status, edit, _ = run(capsys, "inject", made, FACT, "--name", "bridge", "--alpha", "0.5")
    assert (status, edit["name"], edit["alpha"], edit["method"]) == (0, "bridge", 0.5, "consolidate")
    status, listed, _ = run(capsys, "edits", made)
    assert listed == {"edits": [edit], "undone": []}
    status, shown, _ = run(capsys, "show", made, "bridge")
    assert (status, shown) == (0, {**edit, "state": "active"})
    status, verified, _ = run(capsys, "verify", made)
    assert (status, verified["ok"], [f["name"] for f in verified["facts"]]) == (0, True, ["bridge"])
    assert run(capsys, "undo", made, "bridge")[:2] == (0, {"name": "bridge", "state": "undone"})
    assert run(capsys, "show", made, "bridge")[1]["state"] == "undone"
    assert run(capsys, "edits", made)[1] == {"edits": [], "undone": [edit]}
    assert run(capsys, "ask", made, "The Golden Gate", "--max-new-tokens", 4)[1] == before
    assert run(capsys, "redo", made, "bridge")[0] == 0
    assert run(capsys, "undo", made, "bridge")[0] == 0
    assert run(capsys, "drop", made, "bridge")[:2] == (0, {"name": "bridge", "state": "dropped"})
    assert run(capsys, "edits", made)[1] == {"edits": [], "undone": []}


def test_options_reach_the_configuration(
    tmp_path: Path, cache: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--preset triple --layers=-1 --generator low_rank --np-rank 4 --num-ranks 2 --key learned"
    axes = "--mlp-input post_attention --attention-residual keep --dtype bfloat16"
    status, info, _ = run(capsys, "convert", tiny_base, tmp_path / "w", *options.split(), *axes.split())
    assert status == 0
    got = info["plasticity"]
    assert (got["preset"], got["generator"], got["np_rank"], got["num_ranks"]) == ("triple", "low_rank", 4, 2)
    assert (got["key"], got["mlp_input"], got["attention_residual"]) == ("learned", "post_attention", "keep")
    assert (info["plastic_layers"], info["base"]["dtype"]) == ([1], "bfloat16")


def test_a_failed_check_exits_with_1(
    tmp_path: Path, cache: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "convert", tiny_base, tmp_path / "w", "--preset", "single")
    status, result, err = run(capsys, "fidelity", tmp_path / "w", "--max-logit-error", "1e-4")
    assert (status, result["max_logit_error"] > 1e-4) == (1, True)
    assert "check failed: max_logit_error" in err
    assert run(capsys, "fidelity", tmp_path / "w", "--max-logit-error", "100")[0] == 0


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["info", "{tmp}/none"], "there is no workspace"),
        (["info", "{tmp}"], "is not a workspace"),
        (["convert", "{tmp}/none", "{tmp}/new"], "there is no model folder"),
        (["convert", "{base}", "{made}"], "exists and is not empty"),
        (["convert", "{base}", "{tmp}/new", "--layers", "7"], "layer 7 is out of range"),
        (["convert", "{base}", "{tmp}/new", "--num-ranks", "2"], "num_ranks=2 with generator='analytic'"),
        (
            ["convert", "{base}", "{tmp}/new", "--generator", "low_rank", "--np-rank", "99"],
            "np_rank 99 is above",
        ),
        (["fidelity", "{made}", "--data", "{tmp}/none.txt"], "there is no file"),
        (["fidelity", "{made}", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["ask", "{made}", ""], "the prompt is empty"),
        (["inject", "{made}", " "], "the statement is empty"),
        (["inject", "{made}", FACT, "--alpha", "0"], "alpha must be a finite number"),
        (["inject", "{made}", FACT, "--name", "a/b"], "cannot name an edit"),
        (["undo", "{made}", "nothing"], "there is no active edit 'nothing'"),
        (["show", "{made}", "nothing"], "there is no edit 'nothing'"),
        (["inject", "{made}", FACT, "--layers", "9"], "layer 9 is out of range"),
        (["inject", "{made}", FACT, "--max-drift", "nan"], "max_drift must be a finite number"),
        (["edits", "{tmp}/none"], "there is no workspace"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    made: Path,
    tmp_path: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    cause: str,
) -> None:
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    filled = [a.format(tmp=tmp_path, made=made, base=tiny_base) if "{" in a else a for a in args]
    status, result, err = run(capsys, *filled)
    assert status == 2
    assert cause in result["error"]
    assert "\n" not in result["error"]
    assert err.endswith(f"npt: {result['error']}\n")
    assert "Traceback" not in err
    own = (".lock", "self_text", "statistics")  # the lock and the cache are not the user's
    assert [p for p in sorted(str(p) for p in tmp_path.rglob("*")) if not any(o in p for o in own)] == [
        p for p in before if not any(o in p for o in own)
    ]


def test_a_refused_drift_and_a_damaged_edit_exit_with_1(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result, _ = run(capsys, "inject", made, FACT, "--max-drift", "-0.99")
    assert status == 1
    assert "refused: perplexity on ordinary text would rise" in result["error"]
    assert run(capsys, "edits", made)[1] == {"edits": [], "undone": []}
    assert run(capsys, "inject", made, FACT, "--name", "bridge")[0] == 0
    file = made / "edits" / "bridge.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    status, result, err = run(capsys, "verify", made)
    assert (status, list(result["refused"])) == (1, ["bridge"])
    assert "this edit is left out" in err


@pytest.mark.parametrize("args", [["convert"], ["ask", "w"], ["nonsense"], ["convert", "m", "w", "--preset", "quad"]])
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_reader_who_has_seen_enough_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "neuroplastic.cli", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"npt {npt.__version__}\n"


def test_people_get_tables(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, shown in [
        (["info", made], "plastic layers"),
        (["fidelity", made], "perplexity of the base"),
        (["edits", made], "no edits"),
        (["inject", made, FACT, "--name", "bridge"], "written into 1 layers at 'The Golden Gate Bridge'"),
        (["edits", made], "bridge"),
        (["show", made, "bridge"], "Madrid"),
        (["verify", made], "the weights are exact"),
        (["undo", made, "bridge"], "bridge: undone"),
        (["ask", made, "The Golden Gate"], "The Golden Gate"),
    ]:
        assert main([str(a) for a in args]) == 0
        assert shown in capsys.readouterr().out


def test_facts_in_every_form(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ("inject", made, "--ask", "Where is the Eiffel Tower?", "--answer", "Paris", "--subject", "Eiffel Tower")
    status, edit, _ = run(
        capsys, *told, "--wording", "The Eiffel Tower is in", "--wording", "One sees the Eiffel Tower in"
    )
    assert (status, edit["question"], edit["answer"]) == (0, "Where is the Eiffel Tower?", "Paris")
    assert edit["subject"] == "Eiffel Tower"
    file = tmp_path / "facts.jsonl"
    file.write_text(
        json.dumps({"statement": FACT, "name": "bridge"}) + "\n" + json.dumps({"statement": "The fox is lazy."})
    )
    keep = tmp_path / "keep.txt"
    keep.write_text("The Eiffel Tower is located in the city of Paris.\n")
    status, made_of_file, _ = run(
        capsys, "inject", made, "--from", file, "--keep", keep, "--sites", "gate+up", "--rank", 1
    )
    assert status == 0
    assert [e["name"] for e in made_of_file["edits"]] == ["bridge", "the-fox-is-lazy"]
    assert {e["told_together"] for e in made_of_file["edits"]} == {2}
    assert all(set(sites) == {"gate", "up"} for e in made_of_file["edits"] for sites in e["relative_norm"].values())
    status, found, _ = run(capsys, "compare", made, "The Eiffel Tower is in", "--track", "Paris", "--max-new-tokens", 3)
    assert status == 0
    assert set(found) == {"prompt", "edited", "unedited", "tracked"}
    assert set(found["tracked"]["Paris"]) == {"edited", "unedited"}
    status, refined, _ = run(capsys, "inject", made, "Sushi is from Italy.", "--method", "refine", "--start", "token")
    assert (status, refined["method"], refined["layers"]) == (0, "refine", [0, 1])


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ([], "give one of STATEMENT, --ask and --from, not none of them"),
        (["A b.", "--ask", "Where?"], "give one of STATEMENT, --ask and --from, not STATEMENT and --ask"),
        (["--ask", "Where?"], "--ask goes with --answer"),
        (["--ask", "Where?", "--answer", " "], "the answer is empty"),
        (["A b.", "--answer", "c"], "does not end with the answer"),
        (["A b.", "--subject", "c"], "the subject 'c' is not in"),
        (["A bcd.", "--answer", "cd"], "only a part of the word"),
        (["A catalogue is b.", "--subject", "cat"], "the subject 'cat' is not in"),
        (["埃菲尔铁塔位于巴黎。"], "give it too, with --answer"),
        (["--from", "{tmp}/chinese.txt"], "chinese.txt, line 2: the statement"),
        (["--from", "{tmp}/none.txt"], "there is no file"),
        (["--from", "{tmp}/facts.txt", "--name", "x"], "--name has no meaning with --from"),
        (["--from", "{tmp}/bad.jsonl"], "bad.jsonl, line 1: unknown field 'colour'"),
        (["A b.", "--keep", "{tmp}/none.txt"], "there is no file"),
        (["A b.", "--keep", "{tmp}/empty.txt"], "holds no sentence"),
        (["A b.", "--sites", "head"], "there is no site 'head'"),
        (["A b.", "--rank", "0"], "rank must be at least 1"),
        (["A b.", "--layers", "early,9"], "layer 9 is out of range"),
    ],
)
def test_bad_facts_exit_with_2(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], cause: str
) -> None:
    (tmp_path / "facts.txt").write_text("A b.\n")
    (tmp_path / "chinese.txt").write_bytes("\ufeffA b\u2028c.\r\n埃菲尔铁塔位于巴黎。".encode())
    (tmp_path / "bad.jsonl").write_text('{"statement": "A b.", "colour": 1}')
    (tmp_path / "empty.txt").write_text("\n")
    status, out, err = run(capsys, "inject", made, *(o.format(tmp=tmp_path) for o in options))
    assert status == 2
    assert cause in out["error"]
    assert err.splitlines()[-1].startswith("npt: ")
    assert run(capsys, "edits", made)[1] == {"edits": [], "undone": []}


def test_facts_that_meet_are_told_apart(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path, tiny_base: Path
) -> None:
    """The same fact again changes nothing; a new answer replaces the old one, or stands beside it if that is asked."""
    made, oslo = str(tmp_path / "w"), FACT.replace("Madrid", "Paris")
    run(capsys, "convert", str(tiny_base), made)
    assert "changed" not in run(capsys, "inject", made, FACT, "--method", "token", "--name", "one")[1]
    status, again, _ = run(capsys, "inject", made, FACT, "--method", "token")
    assert (status, again["name"], again["changed"]) == (0, "one", False)
    other = run(capsys, "inject", made, oslo, "--method", "token", "--name", "two")[1]
    assert (other["replaces"], other["contradicts"]) == (["one"], [])
    run(capsys, "undo", made, "two")
    assert [e["name"] for e in run(capsys, "edits", made)[1]["edits"]] == ["one"]
    both = run(capsys, "inject", made, oslo, "--method", "token", "--name", "both", "--keep-both")[1]
    assert (both["replaces"], both["contradicts"]) == ([], ["one"])
    status, refused, _ = run(capsys, "inject", made, oslo, "--consistent", "--keep-both")
    assert status == 2
    assert "consistent refuses what keep_both allows" in refused["error"]
