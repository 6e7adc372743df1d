"""The encoder of a new federation, and the settings that depend on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedmtl_client import proposals
from fedmtl_local.new import options
from fedmtl_local.new.dry_run import local_tokenizer, most_positions
from fedmtl_local.new.examined import ExaminedTask
from fedmtl_local.new.questions import Questions

_LEARNING_RATES = {options.PACKAGED_ENCODER: 2e-4, options.HUB_ENCODER: 2e-4, "builtin:toy": 2e-3}
_OTHER_LEARNING_RATE = 5e-5
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_CHARACTERS_PER_TOKEN = 3
"""An estimate for texts whose tokenizer isn't on this machine, rather low."""
_MOST_TOKENIZED = 1_000
_NO_LIMIT = 10**6
"""Tokenizers without a longest input name a larger number."""


def find_encoder(questions: Questions, given: str | None) -> str:
    """Return the encoder's name, such that the server finds it from any folder.

    Args:
        questions: finds the name if it isn't given.
        given: the option's value.

    Raises:
        ConfigError: no encoder can have the name.
    """
    package = options.PACKAGED_ENCODER.removeprefix("python:").partition("/")[0]
    return questions.find(
        "Encoder",
        _named,
        option="--encoder",
        given=given,
        proposed=options.PACKAGED_ENCODER if find_spec(package) is not None else options.HUB_ENCODER,
        check=local_tokenizer if questions.asks else lambda encoder: None,
    )


def _named(text: str) -> str:
    if text and ":" not in text and Path(text).is_dir():
        return str(Path(text).absolute())
    if not (":" in text or text.startswith(("/", ".", "~")) or _HUB_NAME.fullmatch(text)):
        raise ValueError(
            f"expected a folder, python:PACKAGE/FOLDER, a name on the model hub or builtin:toy, got {text!r}"
        )
    return text


def learning_rate(encoder: str) -> float:
    """Return the learning rate that is proposed for an encoder."""
    return _LEARNING_RATES.get(encoder, _OTHER_LEARNING_RATE)


def propose_max_length(tasks: Sequence[ExaminedTask], encoder: str, tokenizer: Any | None) -> int:
    """Return the longest input in tokens that is proposed for the rows of all tasks.

    Args:
        tasks: the tasks with their rows.
        encoder: the encoder's name.
        tokenizer: the encoder's; None if it isn't on this machine.
    """
    lengths: list[int] = []
    for one in tasks:
        rows = [
            row
            for source in one.sources
            for _, table in source.tables
            for row in zip(*(map(str, table.columns[column]) for column in one.task.text_columns), strict=True)
        ]
        sample = rows[:: max(1, len(rows) // _MOST_TOKENIZED)]
        if tokenizer is None:
            lengths += [sum(len(text) // _CHARACTERS_PER_TOKEN + 2 for text in row) for row in sample]
        else:
            encoded = tokenizer(*(list(column) for column in zip(*sample, strict=True)))
            lengths += [len(ids) for ids in encoded["input_ids"]]
    limits = [] if tokenizer is None else [tokenizer.model_max_length, most_positions(encoder)]
    known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    return proposals.propose_max_length(lengths, min(known, default=None))
