"""What the operating system says about memory, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neuroplastic.evaluation import memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux keeps a peak that can be set back")
def test_the_peak_is_what_was_held_at_once() -> None:
    size = 64 * 2**20
    with memory.peak_memory() as before:
        held = torch.ones(size, dtype=torch.uint8)
        del held
    with memory.peak_memory() as nothing:
        pass
    assert before.bytes is not None
    assert nothing.bytes is not None
    assert 0.9 * size < before.bytes < 2 * size  # though it is free again; the system counts in batches of pages
    assert nothing.bytes < size // 2  # set back to the present size, not kept from before
    assert before.missing is None


def test_a_system_without_it_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "proc")
    done = False
    with memory.peak_memory() as found:
        done = True
    assert done
    assert found.bytes is None
    assert "is not measured" in str(found.missing)
