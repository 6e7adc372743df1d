"""Checks an encoder before training.

The server runs the check when it loads an encoder for a new run, a client before its first round with the encoder, and
both doctors. The check encodes a few short texts and one of `training.max_length` tokens. The encoder and the global
random state stay unchanged.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmtl_core.errors import ConfigError, ModelUnavailableError, first_line
from fedmtl_core.identifiers import name_some
from fedmtl_core.logs import Logger
from fedmtl_core.model.encoders import is_on_this_machine, load_tokenizer
from fedmtl_core.model.pooling import encode_texts, is_token, padded_behind
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.model.probe import unchanged
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.kinds import word_embeddings
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDING = 1e-3
"""Largest change of a text's vector beside another text that counts as rounding, relative to its largest number."""
UNCHANGED = 1e-6
"""Largest relative difference at which two vectors count as equal."""

_PLAIN_WORDS = ("good", "time", "people", "house")
_WORDS_TRIED = 2000
"""Number of vocabulary entries to try if the tokenizer knows none of the plain words."""

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Remark:
    """A problem of an encoder, or a possible problem."""

    found: str
    advice: str
    is_error: bool = True
    """Whether the encoder is unusable; otherwise it works, but perhaps not as intended."""

    def __str__(self) -> str:
        return f"{self.found}; {self.advice}"


@dataclass(frozen=True)
class EncoderReport:
    """The findings of an encoder check."""

    remarks: tuple[Remark, ...]
    is_tried: bool
    """Whether texts were encoded; False after an error, or if there is no tokenizer on this machine."""

    def settle(self, log: Logger) -> None:
        """Log the warnings.

        Raises:
            ConfigError: the encoder can't be trained as configured; the message has all errors, one per line.
        """
        for remark in self.remarks:
            if not remark.is_error:
                log.warning("model.doubtful", found=remark.found, advice=remark.advice)
        if errors := [str(remark) for remark in self.remarks if remark.is_error]:
            raise ConfigError("\n".join(errors))


@dataclass(frozen=True)
class Use:
    """The intended use of an encoder."""

    source: str
    """The encoder's name, for messages."""
    max_length: int
    """Longest input in tokens."""
    pooling: Pooling | None = None
    """The pooling of texts for the heads; None if all heads see tokens."""
    pairs: bool = False
    """Whether some inputs are pairs of texts."""

    @classmethod
    def by_tasks(cls, source: str, max_length: int, pooling: Pooling, specs: Sequence[TaskSpec]) -> Use:
        """Return the use that tasks make of an encoder."""
        pools = any(kind_of(spec).sees == "text" for spec in specs)
        return cls(source, max_length, pooling if pools else None, any(len(spec.text_columns) > 1 for spec in specs))


def check(
    encoder: nn.Module, tokenizer: PreTrainedTokenizerBase | None, use: Use, weights: LoadedWeights | None = None
) -> EncoderReport:
    """Check an encoder.

    Args:
        encoder: the encoder as loaded, on CPU.
        tokenizer: the encoder's tokenizer; None if it isn't on this machine, which makes the check less thorough.
        use: the intended use.
        weights: the weights that the encoder's files have; None if they weren't read.
    """
    remarks = [*_weights(weights, use), *_positions(encoder, use)]
    if tokenizer is not None:
        remarks += _tokenizer(tokenizer, encoder, use)
    is_tried = tokenizer is not None and not any(remark.is_error for remark in remarks)
    if is_tried:
        with _undisturbed(encoder):
            remarks += _tried(encoder, tokenizer, use)
    return EncoderReport(tuple(remarks), is_tried)


def check_for_server(
    use: Use, client_model: str | None, encoder: nn.Module, weights: LoadedWeights | None = None
) -> EncoderReport:
    """Check a server's encoder, with its clients' tokenizer if that is on this machine.

    Args:
        use: the intended use.
        client_model: the clients' own model, `model.client_model`; None if clients use the server's.
        encoder, weights: see `check`.
    """
    return check(encoder, _tokenizer_here(use.source, client_model), use, weights)


def _tokenizer_here(server_model: str, client_model: str | None) -> PreTrainedTokenizerBase | None:
    """Return the clients' tokenizer; None if it isn't on this machine. A model for clients only isn't downloaded."""
    source = client_model or server_model
    if source != server_model and not is_on_this_machine(source):
        return None
    try:
        return load_tokenizer(source)
    except ModelUnavailableError:
        return None


# Weights.


def _weights(weights: LoadedWeights | None, use: Use) -> Iterator[Remark]:
    """Check that every weight was found. Additional weights, such as another task's head, are ignored."""
    if weights is None:
        return
    pooler = [name for name in weights.missing if _is_pooler(name)]
    rest = [name for name in weights.missing if not _is_pooler(name)]
    advice = "name a folder that has them, or set model.random_init to true to start from random values"
    others = f"; the files have {name_some(weights.leftover, 3)} instead" if weights.leftover else ""
    if len(weights.missing) == weights.num_wanted:
        yield Remark(
            f"{use.source}: none of the encoder's {weights.num_wanted} tensors is in its files: expected "
            f"{name_some(weights.missing, 3)}{others}",
            advice,
        )
    elif rest:
        yield Remark(
            f"{use.source}: {len(rest)} of the encoder's {weights.num_wanted} tensors aren't in its files: "
            f"{name_some(rest, 3)}{others}",
            advice,
        )
    if pooler and not rest and use.pooling == "cls":
        yield Remark(
            f"{use.source}: its files have no pooler, so with model.pooling: cls the heads see the encoder's output "
            "through a layer of random values",
            "set model.pooling to mean, which needs no pooler",
            is_error=False,
        )


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


# Length.


def longest_input(encoder: nn.Module) -> int | None:
    """Return the number of tokens that an encoder has positions for; None if its configuration gives no number.

    RoBERTa and related encoders number positions from `padding_idx + 1`, so that many rows of the table are unusable.
    """
    rows = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    if not isinstance(rows, int) or rows <= 0:
        return None
    for name, module in encoder.named_modules():
        first = getattr(module, "padding_idx", None)
        is_table = name.rpartition(".")[2] == "position_embeddings" and getattr(module, "weight", None) is not None
        if is_table and first is not None and len(module.weight) == rows:
            return rows - (int(first) + 1)
    return rows


def _positions(encoder: nn.Module, use: Use) -> Iterator[Remark]:
    longest = longest_input(encoder)
    if longest is None or use.max_length <= longest:
        return
    if _has_position_table(encoder):
        yield _too_long(use, longest)
    else:
        yield Remark(
            f"training.max_length: {use.source} computes positions without a limit, but its configuration names "
            f"{longest} as the most; got {use.max_length}",
            "expect worse results on texts that are longer than those of its pretraining",
            is_error=False,
        )


def _has_position_table(encoder: PreTrainedModel) -> bool:
    """Whether an encoder looks positions up in a table with as many rows as its configuration says, or two more, as
    BART and related encoders have. Other encoders compute positions (rotary, sinusoidal, relative distances)."""
    rows = encoder.config.max_position_embeddings
    words = word_embeddings(encoder)
    lookups = [(name, m.weight) for name, m in encoder.named_modules() if isinstance(m, nn.Embedding)]
    named = [(name, tensor) for name, tensor in encoder.named_buffers() if "pos" in name and tensor.is_floating_point()]
    return any(
        tensor.ndim == 2 and rows <= len(tensor) <= rows + 2 and tensor is not words and "rel" not in name
        for name, tensor in (*lookups, *named)
    )


def _too_long(use: Use, longest: int) -> Remark:
    return Remark(
        f"training.max_length: {use.source} takes at most {longest} tokens, got {use.max_length}",
        f"set training.max_length to {longest} or less",
    )


# Tokenizer.


def _tokenizer(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, use: Use) -> Iterator[Remark]:
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token
        own = f"`tokenizer.pad_token = {end!r}` (its end token)," if end else "`tokenizer.add_special_tokens`,"
        yield Remark(
            f"{use.source}: its tokenizer has no padding token, so texts of different lengths can't be in one batch",
            f"set one with {own} save model and tokenizer in one folder, and name that folder as the model",
        )
    words = word_embeddings(encoder)
    if words is not None and (largest := max(tokenizer.get_vocab().values(), default=-1)) >= len(words):
        yield Remark(
            f"{use.source}: its tokenizer has token ids up to {largest}, but the encoder has {len(words)} embeddings, "
            f"for ids up to {len(words) - 1}",
            "use the tokenizer that was saved with the encoder, or give the encoder more embeddings with "
            "`resize_token_embeddings`",
        )
    if use.pooling == "cls" and (place := _place_of_cls(tokenizer)) is not None and place > 0:
        yield Remark(
            f"{use.source}: with model.pooling: cls the heads see the first token, but its tokenizer puts "
            f"{tokenizer.cls_token} last",
            "set model.pooling to last",
        )


def _place_of_cls(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the position of the CLS token in a text; None if the tokenizer adds none."""
    ids = tokenizer(_PLAIN_WORDS[0])["input_ids"]
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else None


# Trial.


@dataclass(frozen=True)
class _Texts:
    """Inputs for the trial of an encoder."""

    long: Inputs
    """Two rows: the short text, and one with the longest input's number of tokens."""
    short: Inputs
    changed: Inputs
    """The short text with a different last word."""


def _tried(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, use: Use) -> Iterator[Remark]:
    """Yield the problems found by encoding texts."""
    words = _known_words(tokenizer)
    if len(words) < 3:
        yield Remark(
            f"{use.source}: not tried on texts, since its tokenizer knows fewer than three words",
            "try it in a round",
            False,
        )
        return
    texts = _texts(tokenizer, words, use)
    pooling = use.pooling or "mean"
    try:
        alone, changed = (encode_texts(encoder, one, pooling)[0] for one in (texts.short, texts.changed))
    except Exception as error:  # an encoder's code may raise anything
        yield _fails_at_all(use, error)
        return
    try:
        beside = encode_texts(encoder, texts.long, pooling)[0]
    except Exception as error:  # an encoder's code may raise anything
        yield _fails_at(encoder, texts.long, pooling, use, error)
        return
    if not all(bool(one.isfinite().all()) for one in (alone, beside, changed)):
        yield Remark(f"{use.source}: its output for a text is NaN or infinite", "use an encoder with finite weights")
        return
    if (moved := _difference(alone, beside)) > ROUNDING:
        yield Remark(
            f"{use.source}: a text's vector differs by {moved:.1%} beside a longer text, since it depends on padding",
            "set training.train_sampling_strategy to group_by_length, which pads less, or use another encoder",
            is_error=False,
        )
    if _is_cut(texts) or _difference(alone, changed) > UNCHANGED:
        return
    last, changed_last = (encode_texts(encoder, one, "last")[0] for one in (texts.short, texts.changed))
    if use.pooling == "cls" and _difference(last, changed_last) > UNCHANGED:
        yield Remark(
            f"{use.source}: with model.pooling: cls the heads see the first token, but the model is causal: its first "
            "token sees only itself, and no other word of the text",
            "set model.pooling to last, or to mean",
        )
    else:
        yield Remark(
            f"{use.source}: its output does not change with a text's last word", "use another encoder", is_error=False
        )


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    scale = max(float(one.abs().max()), torch.finfo(one.dtype).tiny)
    return float((one - other).abs().max()) / scale


def _is_cut(texts: _Texts) -> bool:
    """Whether truncation removes the last word."""
    return all(torch.equal(one, texts.changed[name]) for name, one in texts.short.items())


def _fails_at_all(use: Use, error: Exception) -> Remark:
    """Describe an encoder that can't encode a short text, or a short pair if tasks have pairs."""
    if use.pairs:
        return Remark(
            f"{use.source}: it can't encode its tokenizer's output for a pair of texts ({_in_words(error)})",
            "use another encoder: one that takes pairs, with a `type_vocab_size` of 2 or more if its tokenizer "
            "gives the second text another token type",
        )
    return Remark(
        f"{use.source}: it can't encode its tokenizer's output for a text ({_in_words(error)})",
        "use another encoder: one that takes a text's token ids",
    )


def _fails_at(encoder: nn.Module, long: Inputs, pooling: Pooling, use: Use, error: Exception) -> Remark:
    """Describe an encoder that can't encode the longest input."""
    moved = padded_behind(long, is_token(encoder, long))
    length = next(iter(moved.values())).shape[1]

    def fails(count: int) -> bool:
        try:
            encode_texts(encoder, {name: one[:, :count] for name, one in moved.items()}, pooling)
        except Exception:  # any error means that this length doesn't work
            return True
        return False

    longest = bisect.bisect_left(range(1, length), True, key=fails)
    if longest == 0:
        return Remark(
            f"{use.source}: it can't encode a batch of two texts if one is padded ({_in_words(error)})",
            "use another encoder",
        )
    remark = _too_long(use, longest)
    return Remark(f"{remark.found} ({_in_words(error)})", remark.advice)


def _texts(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], use: Use) -> _Texts:
    first, last, other = words[:3]
    short, changed, long = f"{first} {last}", f"{first} {other}", " ".join([first] * use.max_length)

    def encoded(*texts: str) -> Inputs:
        columns = [list(texts)] * (2 if use.pairs else 1)
        rows = tokenizer(*columns, truncation=True, max_length=use.max_length)
        return dict(tokenizer.pad(rows, return_tensors="pt"))

    return _Texts(encoded(short, long), encoded(short), encoded(changed))


def _known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return three words that a tokenizer knows and distinguishes, or fewer if it has fewer."""
    known: dict[tuple[int, ...], str] = {}
    for word in (*_PLAIN_WORDS, *islice(_vocabulary(tokenizer), _WORDS_TRIED)):
        ids = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        if ids and tokenizer.unk_token_id not in ids:
            known.setdefault(ids, word)
        if len(known) == 3:
            break
    return list(known.values())


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the words among a tokenizer's tokens."""
    special = set(tokenizer.all_special_ids)
    for number in sorted(tokenizer.get_vocab().values()):
        word = "" if number in special else tokenizer.decode([number]).strip()
        if word.isalpha():
            yield word


def _in_words(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said[:200]}"


@contextmanager
def _undisturbed(encoder: nn.Module) -> Iterator[None]:
    """Put an encoder into evaluation mode within the context; restore it and the global random state afterwards."""
    with unchanged(encoder), drawing_from(0), torch.no_grad():
        encoder.eval()
        yield
