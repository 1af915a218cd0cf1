"""Presets side by side on one model, which stays as it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.calibration.calibrate import fit_generators
from neuroplastic.cli import main
from neuroplastic.evaluation.sweep import Variant, analytic_presets, as_rows, calibrated_ranks, sweep


def test_every_preset_is_measured_as_if_alone() -> None:
    model, text = tiny("llama"), tokens(3, 10)
    found = list(sweep(model, text, analytic_presets("all")))
    assert [m.preset for m in found] == ["v1", "v2", "single", "dual", "triple"]
    assert not npt.plastic_layers(model)
    for m in found:
        alone = npt.convert(tiny("llama"), npt.PlasticityConfig(preset=m.preset))  # type: ignore[arg-type]
        assert m.fidelity == npt.measure_fidelity(alone, text)
        assert (m.generator, m.np_rank, m.parameters, m.refused) == ("analytic", None, 0, None)
    rows = as_rows(found)
    assert rows[3]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl"] > 0.01  # type: ignore[operator]


def test_generators_are_prepared_and_counted() -> None:
    seen = []
    variant = Variant(npt.PlasticityConfig(generator="low_rank", np_rank=4), lambda model: seen.append(model))
    model = tiny("llama")
    (found,) = sweep(model, tokens(2, 8), [variant])
    assert seen == [model]
    assert found.np_rank == 4
    assert found.parameters == 2 * (4 * 32 + 2 * 48 * 4)  # code, and a payload for gate and up, in two layers


def test_ranks_are_fitted_as_calibrate_does() -> None:
    text = tokens(12, 24)
    model = tiny("llama")
    found = list(sweep(model, tokens(3, 10), calibrated_ranks("all", [2, 16], text)))
    assert [(m.preset, m.np_rank) for m in found[6:8]] == [("dual", 2), ("dual", 16)]
    for m in found[6:8]:
        config = npt.PlasticityConfig(generator="low_rank", np_rank=m.np_rank or 0, input="effect")
        alone = npt.convert(tiny("llama"), config)
        fit_generators(alone, text)
        assert m.fidelity == npt.measure_fidelity(alone, tokens(3, 10))
    assert found[7].fidelity.kl < found[6].fidelity.kl  # type: ignore[union-attr]


def test_a_preset_that_does_not_fit_is_named() -> None:
    found = {m.preset: m for m in sweep(tiny("gemma2"), tokens(2, 8), analytic_presets("all"))}
    assert found["triple"].fidelity is None
    assert "a norm after the MLP" in str(found["triple"].refused)
    assert found["dual"].fidelity is not None


def test_the_command_and_its_reports(
    workspace: npt.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, report = ["fidelity", str(workspace.path), "--max-tokens", "46"], tmp_path / "r"
    assert main([*command, "--each-layer", "--report", str(report), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["by_layer"]) == ["0", "1"]
    assert json.loads((report / "fidelity.json").read_text()) == found
    assert (report / "report.html").read_text().count("<svg") == 3
    lines = list(csv.reader((report / "fidelity.csv").read_text().splitlines()))
    assert len(lines) == 1 + 1 + len(found["by_position"]) + 2
    assert main([*command, "--sweep", "--ranks", "2", "8", "--report", str(report), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    presets = ["v1", "v2", "single", "dual", "triple"]
    assert [row["preset"] for row in rows] == presets + [p for p in presets for _ in range(2)]
    assert [row["np_rank"] for row in rows] == [None] * 5 + [2, 8] * 5
    assert main([*command, "--sweep", "--ranks", "2", "10000"]) == 2
    assert "from 1 to the model's width" in capsys.readouterr().err
    assert "single" in (report / "report.html").read_text()
    for options in (["--sweep", "--ranks"], ["--each-layer"]):
        assert main([*command, *options]) == 0
        assert "likeliest" in capsys.readouterr().out
    for clash in (["--each-layer"], ["--max-logit-error", "1"]):
        assert main([*command, "--sweep", *clash]) == 2
        assert "have no meaning" in capsys.readouterr().err
