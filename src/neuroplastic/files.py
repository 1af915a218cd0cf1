"""Files that are written whole or not at all, read with every key checked, and hashed by content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NPTError

if TYPE_CHECKING:
    from torch import Tensor


CANNOT_SYNC = frozenset([errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
"""What a system answers that syncs no such file."""


def cache_dir() -> Path:
    """Where converted models and their statistics are kept: $NPT_CACHE, else the user's cache folder."""
    if given := os.environ.get("NPT_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neuroplastic"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(dest: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes `dest` if all goes well and vanishes if not."""
    refuse_occupied(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".tmp", dir=dest.parent))
    try:
        folder = scratch / dest.name
        folder.mkdir()
        yield folder
        refuse_occupied(dest)
        if dest.is_dir():
            dest.rmdir()
        folder.rename(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_occupied(dest: Path) -> None:
    """Raises NPTError if something would be overwritten."""
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        raise NPTError(f"{str(dest)!r} exists and is not empty; choose another folder")


def refuse_pointer(path: Path) -> None:
    """Raises NPTError for the few lines of text that Git LFS leaves if it did not fetch a file."""
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise NPTError(f"{str(path)!r} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")


def _sync(path: Path) -> None:
    """Raises OSError if the content could not be written; systems that cannot sync this at all are left alone."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes what was renamed in a folder last, as far as the system can: some shares and Windows sync no folder. The
    files in it are whole and in place already, so that nothing which fails here may undo it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, data: object) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a file that a user gave, without a byte order mark. Raises NPTError if there is no file, or it is
    no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NPTError(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise NPTError(f"cannot read {str(path)!r} as UTF-8 text: {e}") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, empty ones too; a line ends at a line break alone.

    `str.splitlines` also breaks at U+2028, U+0085, form feeds and the like, which may stand inside JSON or a sentence.
    """
    return re.split(r"\r\n|\n|\r", text)


def read_json(path: Path) -> dict[str, Any]:
    """Raises NPTError if the file is missing, unreadable or not one JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NPTError(f"{path} is missing") from None
    except (OSError, ValueError) as e:
        raise NPTError(f"{path} is damaged: {e}") from None
    if not isinstance(data, dict):
        raise NPTError(f"{path} is damaged: not a JSON object")
    return data


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """One safetensors file, with `metadata` as JSON in its header."""
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with whole_file(path) as temporary:
        save_file(plain, str(temporary), metadata={"npt": json.dumps(metadata, ensure_ascii=False)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `write_tensors` made. Raises NPTError for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            held = (f.metadata() or {}).get("npt")
            # cloned: a memory-mapped tensor dies with its file, and products of unaligned ones may differ in a bit
            tensors = {name: f.get_tensor(name).clone() for name in f.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise NPTError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError) as e:
        raise NPTError(f"{path} is damaged: {e}") from None
    try:
        metadata = json.loads(held) if held is not None else None
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise NPTError(f"{path} is not a file of npt's: its header holds no npt metadata")
    return tensors, metadata


def content_hash(state: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors, in the order of names.

    Independent of the file format the weights came from. Tied tensors count once for each name.
    """
    import torch

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, t = item
        data = t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        head = f"{name} {t.dtype} {tuple(t.shape)}".encode()
        return hashlib.sha256(head + hashlib.sha256(data.data).digest()).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the interpreter lock
        parts = list(pool.map(digest, sorted(state.items())))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_hash(folder: Path, progress: Callable[[int, int], None]) -> str:
    """sha256 over names and bytes of a folder's files, without hidden ones; `progress` is called with (done, total)."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith("."))
    found = hashlib.sha256()
    for done, path in enumerate(files, 1):
        found.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
        progress(done, len(files))
    return found.hexdigest()
