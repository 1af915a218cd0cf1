"""`npt shell`: a session on one loaded workspace.

The commands of `npt` are the same functions, and find the workspace open. A few more belong to a session: tracked
words, the mode to ask in, and modulations with names, to calculate with.
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from ..console import Terminal, note
from ..editing.extract import Modulation, extract_modulation, transfer
from ..errors import CheckFailed, NPTError
from ..files import cache_dir
from . import printing
from .common import LOADED, run

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

OF_NPT = ("ask", "compare", "inject", "edits", "show", "verify", "undo", "redo", "drop", "info", "fidelity", "export")
"""Commands of `npt` that work in a shell, without naming the workspace."""
WITH_TEXT = ("ask", "compare", "inject")
"""Their text may stand without quotes, before the options."""
OPTION = re.compile(r"\s--(?=[A-Za-z])")
"""Where an option begins, unless it is between quotes."""
QUOTED = re.compile(r"""(?<!\S)(?:"(?:[^"\\]|\\.)*"|'(?:[^']|(?<=\w)'(?=\w))*'(?!\w)|“[^”]*”)""", re.DOTALL)
"""A text between quotes. A quotation begins a word; elsewhere the signs are an apostrophe, or inches."""


class Shell:
    """Commands are methods named do_*; each takes what follows its name."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.mode = "dynamic"
        self.tracked: list[str] = []
        self.modulations: dict[str, Modulation] = {}
        self.console = Terminal()

    def run(self) -> int:
        """Reads commands until `quit` or the end of the input; returns the exit status."""
        LOADED[self.workspace.path] = self.workspace
        interactive = sys.stdin.isatty()
        try:
            for line in self._typed() if interactive else sys.stdin:
                if line.strip() in ("quit", "exit"):
                    break
                status = self.command(line)
                if status != 0 and not interactive:
                    return status
        finally:
            del LOADED[self.workspace.path]
        return 0

    def command(self, line: str) -> int:
        """Runs one line; returns its status. Errors are printed, not raised."""
        name, rest = (*line.split(maxsplit=1), "", "")[:2]
        if not name or name.startswith("#"):
            return 0
        own = getattr(self, f"do_{name}", None)
        try:
            if own is not None:
                own(rest.strip())
                return 0
            if name not in OF_NPT:
                raise NPTError(f"there is no command {name!r}; `help` lists them")
            return run([name, str(self.workspace.path), *self._arguments(name, rest.strip())])
        except (NPTError, CheckFailed) as e:
            note(f"npt: {e}")
            return 2 if isinstance(e, NPTError) else 1
        except SystemExit as e:  # the option parser ends so, having printed why
            return int(e.code or 0)
        except KeyboardInterrupt:
            note("interrupted")
            return 130

    # --- commands of a session --------------------------------------------------------------------------------------

    def do_help(self, rest: str) -> None:
        """help                     this list; COMMAND --help tells the options of a command of npt"""
        self.console.print("of npt, on this workspace: " + ", ".join(OF_NPT))
        for _, method in sorted(self._own().items()):
            self.console.print("  " + inspect.cleandoc(method.__doc__ or ""))
        self.console.print("  quit")

    def do_mode(self, rest: str) -> None:
        """mode [dynamic|standard]  how `ask` runs the model"""
        if rest not in ("", "dynamic", "standard"):
            raise NPTError(f"mode must be dynamic or standard, not {rest!r}")
        self.mode = rest or self.mode
        self.console.print(f"mode: {self.mode}")

    def do_track(self, rest: str) -> None:
        """track [WORD ...]         words whose probability `compare` and `transfer` show; alone: none"""
        self.tracked = _split(rest)
        self.console.print("tracked: " + (", ".join(self.tracked) or "none"))

    def do_layers(self, rest: str) -> None:
        """layers                   which layers are plastic, and which the edits change"""
        plastic = self.workspace.info()["plastic_layers"]
        self.console.print(f"plastic: {', '.join(map(str, plastic))}")
        for edit in self.workspace.edits:
            self.console.print(f"{edit.name}: {', '.join(map(str, edit.layers))}")

    def do_extract(self, rest: str) -> None:
        """extract NAME CONTEXT     the modulation of the context's last token, kept under NAME"""
        name, context = self._name_and_text(rest, "extract NAME CONTEXT")
        self._keep(name, extract_modulation(self.workspace.model, self.workspace.tokenizer, context))

    def do_transfer(self, rest: str) -> None:
        """transfer NAME PROMPT     the next token, without and with the modulation added at the prompt's last token"""
        name, prompt = self._name_and_text(rest, "transfer NAME PROMPT")
        ws = self.workspace
        found = transfer(ws.model, ws.tokenizer, prompt, self._modulation(name), track=self.tracked)
        rows = zip(found.tokens, found.before, found.after, strict=True)
        printing.probabilities(self.console, {token: (before, after) for token, before, after in rows})

    def do_add(self, rest: str) -> None:
        """add NAME A B             NAME = A + B"""
        name, one, other = self._names(rest, 3, "add NAME A B")
        self._keep(name, self._modulation(one) + self._modulation(other))

    def do_sub(self, rest: str) -> None:
        """sub NAME A B             NAME = A - B"""
        name, one, other = self._names(rest, 3, "sub NAME A B")
        self._keep(name, self._modulation(one) - self._modulation(other))

    def do_scale(self, rest: str) -> None:
        """scale NAME A FACTOR      NAME = FACTOR A"""
        name, one, factor = self._names(rest, 3, "scale NAME A FACTOR")
        try:
            self._keep(name, self._modulation(one) * float(factor))
        except ValueError:
            raise NPTError(f"{factor!r} is not a number") from None

    def do_save(self, rest: str) -> None:
        """save NAME FILE           write a modulation as safetensors"""
        name, file = self._names(rest, 2, "save NAME FILE")
        self._modulation(name).save(Path(file))
        self.console.print(f"saved {file}")

    # --- what they share --------------------------------------------------------------------------------------------

    def _arguments(self, name: str, rest: str) -> list[str]:
        """The arguments of a command of npt: its text as it stands, then its options."""
        if name not in WITH_TEXT:
            return _split(rest)
        text, options = _text_and_options(rest)
        arguments = _split(options)
        if name == "ask" and "--mode" not in arguments:
            arguments += ["--mode", self.mode]
        if name == "compare":
            arguments += [f"--track={word}" for word in self.tracked]
        return [*arguments, "--", text] if text else arguments

    def _name_and_text(self, rest: str, usage: str) -> tuple[str, str]:
        name, text = (*rest.split(maxsplit=1), "", "")[:2]
        if not text.strip():
            raise NPTError(f"usage: {usage}")
        return name, _unquoted(text)

    def _names(self, rest: str, count: int, usage: str) -> list[str]:
        given = _split(rest)
        if len(given) != count:
            raise NPTError(f"usage: {usage}")
        return given

    def _modulation(self, name: str) -> Modulation:
        if name not in self.modulations:
            known = ", ".join(self.modulations) or "none; make one with `extract`"
            raise NPTError(f"there is no modulation {name!r}; there are: {known}")
        return self.modulations[name]

    def _keep(self, name: str, modulation: Modulation) -> None:
        self.modulations[name] = modulation
        self.console.print(f"{name}: norm {modulation.norm():.4g}")

    def _own(self) -> dict[str, Callable[[str], None]]:
        return {name[3:]: getattr(self, name) for name in dir(self) if name.startswith("do_")}

    def _typed(self) -> Iterator[str]:
        history = cache_dir() / "shell_history"
        history.parent.mkdir(parents=True, exist_ok=True)
        session: PromptSession[str] = PromptSession(history=FileHistory(str(history)), completer=Names(self))
        while True:
            try:
                yield session.prompt("npt> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def words(self, line: str) -> list[str]:
        """What can stand where the last word of `line` is typed."""
        command, space, _ = line.partition(" ")
        if not space:
            return sorted([*OF_NPT, *self._own(), "quit"])
        match command:
            case "undo" | "show":
                return [e.name for e in self.workspace.edits]
            case "redo" | "drop":
                return list(self.workspace.undone)
            case "mode":
                return ["dynamic", "standard"]
            case "transfer" | "add" | "sub" | "scale" | "save":
                return list(self.modulations)
        return []


class Names(Completer):
    """Completes commands, and the names of edits and modulations."""

    def __init__(self, shell: Shell):
        self.shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.get_word_before_cursor(WORD=True)
        for word in self.shell.words(document.text_before_cursor.lstrip()):
            if word.startswith(typed):
                yield Completion(word, start_position=-len(typed))


def _text_and_options(rest: str) -> tuple[str, str]:
    """A text as it stands, without the quotes around all of it, and the options after it. Raises NPTError if a
    double quote opens a quotation that nothing closes."""
    quoted = [q.span() for q in QUOTED.finditer(rest)]

    def outside(at: int) -> bool:
        return not any(start <= at < end for start, end in quoted)

    line = " " + rest  # an option may stand first
    end = next((m.start() for m in OPTION.finditer(line) if outside(m.start() - 1)), len(line))
    for opening in re.finditer(r'(?<!\S)"', rest[: max(0, end - 1)]):
        if outside(opening.start()):
            raise NPTError(f"cannot read {rest!r}: the quotation that begins at {rest[opening.start() :]!r} has no end")
    return _unquoted(line[:end]), line[end:]


def _unquoted(text: str) -> str:
    """`text` without the quotes around all of it. Between double quotes, a backslash stands before a quote of the
    text's own."""
    text = text.strip()
    if not QUOTED.fullmatch(text) or text[0] == "“":  # typographic ones are part of the text
        return text
    return re.sub(r'\\(["\\])', r"\1", text[1:-1]) if text[0] == '"' else text[1:-1]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as e:
        raise NPTError(f"cannot read {text!r}: {e}") from None
