"""Means and intervals on hand-made numbers."""

from __future__ import annotations

import pytest

from neuroplastic.evaluation.summary import harmonic, mean_interval, summary

PARTS = ("ES", "PS", "NS")


def test_the_harmonic_mean() -> None:
    assert harmonic(1, 1, 1) == 1
    assert harmonic(1, 0.5, 0.25) == pytest.approx(3 / 7)
    assert harmonic(1, 1, 0) == 0


def test_means_and_intervals() -> None:
    rows = [{"ES": 1.0, "PS": 1.0, "NS": 0.5, "kl": 2.0}] * 30 + [{"ES": 0.0, "PS": 0.5, "NS": 0.5}] * 10
    found = summary(rows, PARTS)
    assert list(found) == ["S", "ES", "PS", "NS", "kl"]
    assert found["ES"][0] == 0.75
    assert found["PS"][0] == 0.875
    assert found["NS"] == (0.5, 0.5, 0.5)
    assert found["kl"] == (2.0, 2.0, 2.0)  # where it was measured
    assert found["S"][0] == pytest.approx(harmonic(0.75, 0.875, 0.5))
    assert found["S"][1] < found["S"][0] < found["S"][2]
    half = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert found["ES"][1:] == (pytest.approx(0.75 - half, abs=0.04), pytest.approx(0.75 + half, abs=0.04))
    assert summary(rows, PARTS) == found
    assert summary([{"ES": 0.0, "PS": 1.0, "NS": 1.0}], PARTS)["S"] == (0.0, 0.0, 0.0)


def test_the_share_of_a_run_is_the_ratio_of_the_means() -> None:
    pairs = [(0.5, 1.0), (0.5, 0.25), (0.25, 0.0)] * 20
    rows = [{"f1": own, "f1_read": read} for own, read in pairs]
    found = summary(rows, ("f1",), shares={"f1_share": ("f1", "f1_read")})
    mean, low, high = found["f1_share"]
    assert mean == pytest.approx((0.5 + 0.5 + 0.25) / (1 + 0.25))  # the mean of the ratios would be (.5 + 2) / 2
    assert 0.7 < low < mean < high < 1.6
    assert list(found) == ["S", "f1", "f1_read", "f1_share"]
    same = summary([{"f1": 0.2 * i, "f1_read": 0.4 * i} for i in range(4)], ("f1",), shares={"s": ("f1", "f1_read")})
    assert same["s"] == pytest.approx((0.5, 0.5, 0.5))  # the two vary together; draws of zeros are left out
    unread = [*rows, *[{"f1": 9.0}] * 20]  # of which there is no reader
    found = summary(unread, ("f1",), shares={"f1_share": ("f1", "f1_read")})
    assert found["f1"][0] > 2
    assert found["f1_share"][0] == mean
    assert list(found) == ["S", "f1", "f1_read", "f1_share"]
    for lacking in ({"f1": 1.0}, {"f1": 1.0, "f1_read": 0.0}):
        assert "s" not in summary([lacking] * 3, ("f1",), shares={"s": ("f1", "f1_read")})


def test_the_interval_of_one_figure() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0] * 25)
    half = 1.96 * (1.25 / 100) ** 0.5
    assert mean_interval([i / 7 for i in range(8)], seed=1) != mean_interval([i / 7 for i in range(8)])
    assert (mean, low, high) == (2.5, pytest.approx(2.5 - half, abs=0.05), pytest.approx(2.5 + half, abs=0.05))
