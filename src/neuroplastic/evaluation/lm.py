"""Tasks of EleutherAI's lm-evaluation-harness on a plastic model, which is handed over as an object, not as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import NPTError
from ..text.generation import own_settings_ignored
from ..text.tokens import start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """By task, the harness's metrics and their standard errors (`*_stderr`), of the model in the mode that it is in.

    `include` is a folder with task files (.yaml) of your own. Prompts are tokenised as the harness does it. Raises
    NPTError for a task that does not exist or cannot be loaded.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise NPTError(f"there is no folder {str(include)!r} with task files")
    manager = TaskManager(include_path=None if include is None else str(include))
    if wrong := [t for t in tasks if not manager.match_tasks([t])]:
        raise NPTError(f"the harness knows no task {wrong[0]!r}; --include names a folder with task files of your own")
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, prefix_token_id=start_token(tokenizer))
    # tasks say how they want their texts written; the harness seeds every generator that there is
    with own_settings_ignored(model), torch.random.fork_rng():
        try:
            found = simple_evaluate(
                wrapped,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (OSError, ValueError, ImportError) as e:  # the task's data: a hub that does not answer, a missing file
            raise NPTError(f"a task of {', '.join(tasks)} cannot be run: {e}") from None
    return {task: _metrics(own) for task, own in found["results"].items()}


def _metrics(own: dict[str, Any]) -> dict[str, float]:
    """{"acc,none": .5, "acc_stderr,none": .1, "alias": ...} -> {"acc": .5, "acc_stderr": .1}"""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in own.items()
        if isinstance(value, int | float) and "," in name
    }
