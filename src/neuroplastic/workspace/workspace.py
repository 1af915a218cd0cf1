"""A workspace: one folder that holds everything about one plastic model, and can be copied.

    npt_config.json     format, base reference (spec, dtype, content hash), plasticity configuration
    npt.safetensors     the generators' parameters (none for the analytic generator)
    edits/NAME.safetensors          active edits, one immutable file each
    edits/undone/NAME.safetensors   edits taken back, kept for `redo`

The folder is the ledger: an edit is undone by moving its file. The base model's weights are never copied here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import models
from ..base_files import base_hash, holds
from ..calibration.calibrate import calibration_rows
from ..calibration.calibrate_options import CalibrateOptions
from ..config import Mode, PlasticityConfig
from ..console import progress
from ..editing.edit import Edit
from ..editing.engine import EditableModel, Held
from ..editing.fact import Fact
from ..editing.inject_options import InjectOptions, Method
from ..editing.ledger import check_places
from ..errors import NPTError
from ..evaluation.fidelity import Fidelity, measure_fidelity
from ..evaluation.sweep import Measured, analytic_presets, calibrated_ranks, sweep
from ..files import content_hash, refuse_occupied, whole_folder
from ..structure import decoder_layers
from ..surgery import base_state, convert, edited_state, mode, plastic_layers, revert
from ..text.conversation import Message, refuse_left_out, render
from ..text.generation import Tell, Writing, Written, write
from ..text.spaces import without_trailing_spaces
from ..text.token_scores import Scores
from ..text.tokens import context_length, encode, read_texts, start_token, windows
from ..text.word_probabilities import word_probabilities
from .edit_files import EditFiles
from .generator_file import generator_state, load_generator_state, read_generators, write_generators
from .settings import GENERATOR_FILE, BaseReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Comparison:
    """A prompt's continuations with the active edits and without them."""

    prompt: str
    edited: str
    unedited: str
    tracked: dict[str, tuple[float, float]]
    """the probability that each tracked word continues the prompt, with and without the edits"""


@dataclass(frozen=True)
class Verification:
    """Whether the weights are what they should be, and which facts still hold among the others."""

    base_unchanged: bool
    weights_exact: bool
    """pristine base plus active edits, recomputed, are bit for bit the weights in memory"""
    facts: list[Held]
    refused: dict[str, str]
    """edit files that could not be read, and why"""

    @property
    def ok(self) -> bool:
        return self.base_unchanged and self.weights_exact and not self.refused


class Workspace:
    """A plastic model with its generators and its edits. Make one with `create`, or `open` one."""

    def __init__(
        self,
        path: Path,
        base: BaseReference,
        config: PlasticityConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.path, self.base, self.config = path, base, config
        self.model, self.tokenizer = model, tokenizer
        self.engine = EditableModel.of(model, tokenizer)
        self.engine.sha256, self.engine.folder = base.sha256, path
        self.files = self.engine.store = EditFiles(path, base.sha256)
        self.refused: dict[str, str] = {}
        """edit files that could not be read when the workspace was opened, and why; the others are active"""

    # --- made and opened ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        base: str | Path = models.DEFAULT_MODEL,
        config: PlasticityConfig | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **from_pretrained: Any,
    ) -> Workspace:
        """Loads `base`, converts it and writes a new workspace; further arguments are those of `load_base`.

        Raises NPTError, with nothing written, if the folder holds something already or the model cannot be converted
        in this way.
        """
        path = Path(path)
        refuse_occupied(path)
        model, tokenizer = models.load_base(base, dtype, device, **from_pretrained)
        found = base_hash(model, models.resolve(base), dtype)
        reference = BaseReference(models.canonical(base), dtype, found)
        return cls._made(path, reference, config or PlasticityConfig(), model, tokenizer)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str | Path,
        config: PlasticityConfig | None = None,
        base: str | Path | None = None,
    ) -> Workspace:
        """Writes a new workspace for a model that is loaded already, and converts it; its edits become the workspace's.

        `base` says from where the model can be loaded when the workspace is opened again (default: from where
        transformers has loaded it). Raises NPTError, with nothing written, if that is not known, the folder holds
        something already, or the model cannot be converted in this way.
        """
        path = Path(path)
        refuse_occupied(path)
        spec = base or getattr(model.config, "_name_or_path", "")
        if not spec:
            raise NPTError("it is not known from where the model can be loaded again; say it: base=FOLDER or a hub id")
        dtype = str(model.dtype).removeprefix("torch.")
        if dtype not in models.DTYPES:
            raise NPTError(f"a workspace's base has one of the dtypes {', '.join(models.DTYPES)}, not {dtype}")
        engine = EditableModel.of(model, tokenizer)
        reference = BaseReference(models.canonical(spec), dtype, engine.sha256)
        return cls._made(path, reference, config or PlasticityConfig(), model, tokenizer)

    @classmethod
    def _made(
        cls,
        path: Path,
        reference: BaseReference,
        config: PlasticityConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Workspace:
        """Converts a model in memory and writes its folder; if that fails, the model is as it was."""
        edits = EditableModel.of(model, tokenizer).edits
        convert(model, config)
        try:
            with whole_folder(path) as making:
                (making / "edits" / "undone").mkdir(parents=True)
                EditFiles(making, reference.sha256).change(write=edits)
                write_generators(making, reference, config, model)
        except BaseException:
            revert(model)
            raise
        return cls(path, reference, config, model, tokenizer)

    @classmethod
    def open(cls, path: str | Path, device: str | None = None, **from_pretrained: Any) -> Workspace:
        """Loads the base, with the arguments of `load_base`, and puts generators and edits in.

        Raises NPTError if the folder is no workspace, a file in it is damaged, or its base has changed.
        """
        path = Path(path)
        reference, config, tensors = read_generators(path)
        model, tokenizer = models.load_base(reference.spec, reference.dtype, device, **from_pretrained)
        if (found := base_hash(model, models.resolve(reference.spec), reference.dtype)) != reference.sha256:
            raise NPTError(
                f"the base model {reference.spec!r} has changed: its content hash is {found[:12]}, the workspace was "
                f"made for {reference.sha256[:12]}; restore that model or create a new workspace"
            )
        convert(model, config)
        load_generator_state(model, tensors, path / GENERATOR_FILE)
        workspace = cls(path, reference, config, model, tokenizer)
        readable, workspace.refused = workspace.files.read_active(
            lambda edit: check_places(model, edit.factors, f"edit {edit.name!r}")
        )
        workspace.engine.load(readable)
        return workspace

    # --- generators ----------------------------------------------------------------------------------------------

    def reconfigure(self, config: PlasticityConfig) -> None:
        """Gives the layers that `config` names new generators, in memory; `save_generators` makes it last.

        The weights, with the edits in them, stay. Raises NPTError, with nothing changed, if the model cannot be
        converted so.
        """
        kept = generator_state(self.model)
        revert(self.model)
        try:
            convert(self.model, config)
        except BaseException:
            convert(self.model, self.config)
            load_generator_state(self.model, kept, self.path / GENERATOR_FILE)
            raise
        self.config = config

    def save_generators(self) -> None:
        """Writes the generators and their configuration into the folder, both or none of them."""
        with self.files.locked():
            write_generators(self.path, self.base, self.config, self.model)

    def reload_generators(self) -> None:
        """Puts the generators back that the folder holds."""
        _, config, tensors = read_generators(self.path)
        self.reconfigure(config)
        load_generator_state(self.model, tensors, self.path / GENERATOR_FILE)

    # --- edits ---------------------------------------------------------------------------------------------------

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The active edits, in the order in which they are added to the weights."""
        return self.engine.edits

    @property
    def undone(self) -> tuple[str, ...]:
        """Names of the edits that were taken back and can be redone."""
        return self.files.undone

    @property
    def names(self) -> set[str]:
        """Names of all edits, active and undone."""
        return self.engine.names

    def inject(self, fact: str | Fact, method: Method | None = None, name: str | None = None, **options: Any) -> Edit:
        """Writes a fact into the weights and into the ledger; returns the edit, whose report says what it did.

        `fact` is a statement, or made by `fact_of` or `asked`; `options` are fields of `InjectOptions`. Raises
        NPTError, with nothing changed, for bad input, and CheckFailed, likewise, if a check that the options ask
        for fails. See `inject_all`.
        """
        return self.engine.inject(fact, method, name, **options)

    def inject_all(
        self,
        facts: Sequence[str | Fact],
        options: InjectOptions | None = None,
        names: Sequence[str | None] | None = None,
    ) -> list[Edit]:
        """Writes several facts, each as an edit of its own; all or none (`EditableModel.inject_all`)."""
        return self.engine.inject_all(facts, options, names)

    def add(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        """Takes edits of the same base in, all or none, as the newest ones; their sequence numbers are given anew.

        Raises NPTError, with nothing changed, if a name is taken or an edit does not fit the model.
        """
        return self.engine.add(edits)

    def verify(self) -> Verification:
        """Compares the base with its files, tensor by tensor, and the weights with base plus edits, computed anew; asks
        every active edit again. No second model is loaded unless the files name their tensors otherwise."""
        with self.engine.unedited():
            pristine = base_state(self.model)
            unchanged = holds(models.resolve(self.base.spec), pristine)
            intact = content_hash(pristine) == self.base.sha256
        if unchanged is None:
            model, _ = models.load_base(self.base.spec, self.base.dtype, "cpu")
            unchanged = content_hash(model.state_dict()) == self.base.sha256
        return Verification(
            base_unchanged=unchanged,
            weights_exact=intact and self.engine.ledger.is_exact(),
            facts=self.held(),
            refused=dict(self.refused),
        )

    def held(self) -> list[Held]:
        """Every active edit that was made from a statement, asked again."""
        return self.engine.held()

    def undo(self, edit: Edit | str) -> Edit:
        """Takes one edit back, in any order; the weights are then bit for bit those without it."""
        return self.engine.undo(edit)

    def redo(self, edit: Edit | str) -> Edit:
        """Puts an undone edit back, in its old place in the order."""
        return self.engine.redo(edit)

    def drop(self, name: str) -> None:
        """Deletes an undone edit for good."""
        self.engine.drop(name)

    # --- asking and measuring ---------------------------------------------------------------------------------------

    def ask(self, prompt: str, mode_: Mode = "dynamic", max_new_tokens: int = 32) -> str:
        """The model's greedy continuation of `prompt` (without spaces at its end), in the given mode, with the active
        edits in the weights."""
        return self.write(prompt, Writing(max_new_tokens), mode_).text

    def write(
        self,
        prompt: str | Sequence[int],
        how: Writing,
        mode_: Mode = "dynamic",
        tell: Tell = lambda piece: None,
        edited: bool = True,
        scores: Scores | None = None,
    ) -> Written:
        """A continuation of `prompt`, in the given mode, with the active edits or without them. `tell` is given the
        pieces of text as they are written, and `scores` the log-probability of every token.

        The prompt is a text, or the tokens that `tokens` or `chat_tokens` make of one.
        """
        ids = self.tokens(prompt) if isinstance(prompt, str) else prompt
        with self.seen(mode_, edited):
            return write(self.model, self.tokenizer, ids, how, tell, scores)

    @contextmanager
    def seen(self, mode_: Mode, edited: bool = True) -> Iterator[None]:
        """The model in a mode, with the active edits in the weights or without them, while it lasts."""
        if mode_ not in ("dynamic", "standard"):
            raise NPTError(f"mode must be dynamic or standard, not {mode_!r}")
        with mode(self.model, mode_), nullcontext() if edited else self.engine.only(()):
            yield

    def compare(self, prompt: str, max_new_tokens: int = 32, track: Sequence[str] = ()) -> Comparison:
        """`prompt` continued with the active edits and without them, and the probability that each tracked word (all
        of its tokens, after a space) continues it, both in standard mode."""
        edited = self.word_probabilities(prompt, track), self.ask(prompt, "standard", max_new_tokens)
        with self.engine.only(()):
            plain = self.word_probabilities(prompt, track), self.ask(prompt, "standard", max_new_tokens)
        tracked = dict(zip(track, zip(edited[0], plain[0], strict=True), strict=True))
        return Comparison(without_trailing_spaces(prompt), edited[1], plain[1], tracked)

    @torch.no_grad()
    def next_token(self, prompt: str, mode_: Mode = "standard", edited: bool = True) -> Tensor:
        """Next-token probabilities after a prompt [vocab]."""
        read = self.tokens(prompt)
        if len(read) > (room := context_length(self.model)):
            raise NPTError(f"the prompt has {len(read)} tokens; it does not fit into the model's {room}")
        ids = torch.tensor([read], device=self.model.device)
        with self.seen(mode_, edited):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0, -1]
        return logits.float().softmax(-1)

    def word_probabilities(
        self, prompt: str, words: Sequence[str], mode_: Mode = "standard", edited: bool = True
    ) -> list[float]:
        """The probability that each word continues a prompt, over all of the word's tokens."""
        self._check_prompt(prompt)
        with self.seen(mode_, edited):
            return word_probabilities(self.model, self.tokenizer, prompt, words)

    def tokens(self, prompt: str) -> list[int]:
        """What the model reads for a prompt: the start token, then the prompt's tokens.

        Spaces at its end are left out, so that "in the city of " continues as "in the city of" does: with the space
        before a word, which is part of the word's token.
        """
        self._check_prompt(prompt)
        return [start_token(self.tokenizer), *encode(self.tokenizer, without_trailing_spaces(prompt))]

    def _check_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise NPTError("the prompt is empty")

    def chat_tokens(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        """What the model reads for a conversation: messages with `role` and `content`, put into its chat template, to
        which `variables` are given.

        Raises NPTError if the model has no such template, it does not take these messages or leaves a part of one
        out, or the conversation does not fit into the model's context.
        """
        ids = encode(self.tokenizer, render(self.tokenizer, messages, variables))
        if len(ids) >= (room := context_length(self.model)):
            raise NPTError(f"the conversation has {len(ids)} tokens; it does not fit into the model's {room}")
        refuse_left_out(self.tokenizer, messages, variables)
        return ids

    def fidelity(self, data: str | Path | None = None, max_tokens: int = 4096, each_layer: bool = False) -> Fidelity:
        """Dynamic mode against the base, without edits, on held-out self-written text or on the file `data`.

        `max_tokens` bounds the predicted tokens; a file's texts are joined and cut into windows of 256. `each_layer`
        also makes every layer dynamic alone, which takes a pass over the text for each.
        """
        text = self.ordinary_text(data, max_tokens)
        with self.engine.only(()), progress("comparing dynamic mode with the base") as step:
            return measure_fidelity(self.model, text, step=step, each_layer=each_layer)

    def sweep(
        self, data: str | Path | None = None, max_tokens: int = 4096, ranks: Sequence[int] = ()
    ) -> list[Measured]:
        """Fidelity of this workspace's base and layers under every preset: exact, and with low-rank generators of these
        `ranks` as `calibrate` would fit them. The workspace stays as it is."""
        text, layers = self.ordinary_text(data, max_tokens), self.config.layers
        width = self.model.get_input_embeddings().embedding_dim
        if wrong := [r for r in ranks if not 1 <= r <= width]:
            raise NPTError(f"ranks must be from 1 to the model's width {width}, not {wrong[0]}")
        variants = analytic_presets(layers)
        if ranks:
            variants += calibrated_ranks(layers, ranks, calibration_rows(self, None, CalibrateOptions().tokens))
        model, _ = models.load_base(self.base.spec, self.base.dtype, text.device)
        with progress("converting in every way and comparing") as step:
            return list(sweep(model, text, variants, step))

    def ordinary_text(self, data: str | Path | None, max_tokens: int) -> Tensor:
        """Rows of tokens to measure on (N, T): held-out self-written text, or that of a file."""
        if data is None:
            return self.held_out[: max(1, max_tokens // (self.held_out.shape[1] - 1))]
        length = min(256, context_length(self.model))
        return windows(self.tokenizer, read_texts(Path(data)), length, max_tokens, self.model.device)

    def info(self) -> dict[str, Any]:
        """What is in the workspace."""
        generator = sum(p.numel() for q in plastic_layers(self.model).values() for p in q.generator.parameters())
        return {
            "path": str(self.path),
            "base": vars(self.base),
            "architecture": type(self.model).__name__,
            "num_layers": len(decoder_layers(self.model)),
            "parameters": sum(p.numel() for p in self.model.parameters()) - generator,
            "generator_parameters": generator,
            "plastic_layers": list(plastic_layers(self.model)),
            "plasticity": {**self.config.to_dict(), **self.config.axes._asdict()},
            "edits": [e.name for e in self.edits],
            "undone": list(self.undone),
        }

    def weights_hash(self) -> str:
        """Content hash of the base weights as they are now, with the units of gated edits; `base.sha256` again once
        every edit is undone."""
        return content_hash(edited_state(self.model))

    @property
    def held_out(self) -> Tensor:
        """Self-written text for measuring (N, T), disjoint from what statistics are made from."""
        return self.engine.text[1]
