"""The wheel alone: built from the checkout, installed beside nothing but what the core dependencies need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def needed(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """Every distribution that these requirements bring along, of those that are installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [(r, "") for r in map(Requirement, requirements)]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        found = metadata.distribution(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                if not extra:
                    yield found
                waiting += [(r, extra) for r in map(Requirement, found.requires or [])]


def linked(distribution: metadata.Distribution, site: Path) -> None:
    """Puts links to the packages and modules of a distribution, and to its metadata, into another site-packages."""
    tops = {file.parts[0] for file in distribution.files or []}
    for top in tops - {"..", "__pycache__"}:  # the first is of scripts
        (site / top).symlink_to(str(distribution.locate_file(top)))


def run(*command: object, cwd: Path, status: int = 0) -> str:
    """What a command prints to standard output and error; it must end with this status.

    No variable such as PYTHONPATH reaches it, which could let modules of another environment in.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def npt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `npt` of an environment with the wheel and without any extra.

    What the core dependencies need is linked from this environment, which takes seconds where pip takes minutes; pip
    then installs the wheel, and checks that nothing is missing.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files in the tree, and takes those of earlier builds in
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("neuroplastic-*.whl")

    environment = folder / "environment"
    venv.create(environment)
    (site,) = environment.glob("lib/python*/site-packages")
    python = environment / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (ours,) = metadata.distributions(name="neuroplastic", path=[str(site)])
    for distribution in needed(ours.requires or []):
        linked(distribution, site)
    run(*pip, "--python", python, "check", cwd=folder)
    return environment / "bin" / "npt"


def run_in_one(npt: Path, *commands: Sequence[object], cwd: Path, statuses: list[int]) -> str:
    """What several commands print, in one process of that environment: to import torch for each would take long."""
    code = "import json, sys; from neuroplastic.cli import main; assert [main(c) for c in json.loads(sys.argv[1])] == "
    words = json.dumps([[str(word) for word in c] for c in commands])
    return run(npt.with_name("python"), "-c", f"{code}{statuses}", words, cwd=cwd)


def test_the_wheel_runs_without_extras(npt: Path, tiny_base: Path, cache: Path, tmp_path: Path) -> None:
    assert "usage: npt" in run(npt, "--help", cwd=tmp_path)
    run(npt, "convert", tiny_base, "w", cwd=tmp_path)
    prompt = "The Golden Gate Bridge is located in the city of"
    printed = run_in_one(
        npt,
        ["inject", "w", f"{prompt} Madrid.", "--name", "bridge", "--method", "token"],
        ["ask", "w", prompt, "--max-new-tokens", 4],
        ["export", "w", "adapter"],
        cwd=tmp_path,
        statuses=[0, 0, 0],
    )
    assert "Madrid" in printed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_missing_part_names_the_extra_that_brings_it(npt: Path, tiny_base: Path, cache: Path, tmp_path: Path) -> None:
    """Nothing is hidden for it: the modules are not in that environment."""
    no_file = "there is no file 'who/what'; to read it as a dataset needs datasets: pip install 'neuroplastic[eval]'"
    expected = {
        "studio w": "the studio needs starlette and uvicorn and matplotlib: pip install 'neuroplastic[studio]'",
        "fidelity w --report r": "a report has plots and needs matplotlib: pip install 'neuroplastic[report]'",
        "eval lm w --tasks arc_easy": "lm-evaluation-harness needs lm_eval: pip install 'neuroplastic[lm]'",
        "eval edits w --data who/what": no_file,
        "train w --max-length 16 --data who/what": no_file,
        "train w --track tensorboard": "the tracker tensorboard is not installed: pip install 'neuroplastic[track]'",
    }
    convert = ["convert", tiny_base, "w", "--generator", "low_rank", "--np-rank", 4]
    commands: list[list[object]] = [list(command.split()) for command in expected]
    printed = run_in_one(npt, convert, *commands, cwd=tmp_path, statuses=[0] + [2] * len(commands))
    messages = [line for line in printed.splitlines() if line.startswith("npt: ")]
    assert messages == [f"npt: {message}" for message in expected.values()]


def test_the_wheel_carries_every_file_of_the_package(npt: Path) -> None:
    def files(package: Path) -> set[str]:
        found = {f.relative_to(package) for f in package.rglob("*") if f.is_file()}
        return {f.as_posix() for f in found if "__pycache__" not in f.parts}

    (installed,) = npt.parent.parent.glob("lib/python*/site-packages/neuroplastic")
    assert files(installed) == files(ROOT / "src" / "neuroplastic")
    assert {"py.typed", "injectors/smollm2-135m.safetensors", "studio/static/index.html"} <= files(installed)
