"""A look at an encoder before anybody trains it.

The server looks when it loads an encoder for a new run, a client before its first round with it, and both doctors. What
an encoder does is tried on a few short texts and one of `training.max_length` tokens; the encoder and the global random
state stay as they were.
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
"""A text's vector may differ by this share of its largest number beside another text."""
UNCHANGED = 1e-6
"""By less, two vectors count as the same one."""

_PLAIN_WORDS = ("good", "time", "people", "house")
_WORDS_TRIED = 2000
"""Of a vocabulary that has none of the plain words."""

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Remark:
    """One thing that is wrong with an encoder, or may be."""

    found: str
    advice: str
    is_error: bool = True
    """Whether it won't work at all; else it works, though perhaps not as it is meant."""

    def __str__(self) -> str:
        return f"{self.found}; {self.advice}"


@dataclass(frozen=True)
class EncoderReport:
    """What was found."""

    remarks: tuple[Remark, ...]
    is_tried: bool
    """Whether texts were encoded; else an error or the lack of a tokenizer kept the check from it."""

    def settle(self, log: Logger) -> None:
        """Log the warnings.

        Raises:
            ConfigError: the encoder can't be trained as it is asked for; the message has all errors, one a line.
        """
        for remark in self.remarks:
            if not remark.is_error:
                log.warning("model.doubtful", found=remark.found, advice=remark.advice)
        if errors := [str(remark) for remark in self.remarks if remark.is_error]:
            raise ConfigError("\n".join(errors))


@dataclass(frozen=True)
class Use:
    """What an encoder is wanted for."""

    source: str
    """Its name, for messages."""
    max_length: int
    """Longest input in tokens."""
    pooling: Pooling | None = None
    """What heads see of a text; None where all of them see tokens."""
    pairs: bool = False
    """Whether some inputs are two texts."""

    @classmethod
    def by_tasks(cls, source: str, max_length: int, pooling: Pooling, specs: Sequence[TaskSpec]) -> Use:
        """The use that tasks make of an encoder."""
        pools = any(kind_of(spec).sees == "text" for spec in specs)
        return cls(source, max_length, pooling if pools else None, any(len(spec.text_columns) > 1 for spec in specs))


def check(
    encoder: nn.Module, tokenizer: PreTrainedTokenizerBase | None, use: Use, weights: LoadedWeights | None = None
) -> EncoderReport:
    """Look at an encoder.

    Args:
        encoder: as it was loaded, on CPU.
        tokenizer: the one that belongs to it; None where it isn't on this machine, and then less is found.
        use: what it is wanted for.
        weights: which weights its files have; None where they weren't read.
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
    """Look at a server's encoder, and at its clients' tokenizer if that is on this machine.

    Args:
        use: what the encoder is wanted for.
        client_model: the model that clients take instead, `model.client_model`; None for the same.
        encoder, weights: see `check`.
    """
    return check(encoder, _tokenizer_here(use.source, client_model), use, weights)


def _tokenizer_here(server_model: str, client_model: str | None) -> PreTrainedTokenizerBase | None:
    """The clients' tokenizer; None where it isn't on this machine. A model that only clients take isn't downloaded."""
    source = client_model or server_model
    if source != server_model and not is_on_this_machine(source):
        return None
    try:
        return load_tokenizer(source)
    except ModelUnavailableError:
        return None


# Weights.


def _weights(weights: LoadedWeights | None, use: Use) -> Iterator[Remark]:
    """Whether every weight was found. What files have besides, such as the head of another task, is of no concern."""
    if weights is None:
        return
    pooler = [name for name in weights.missing if _is_pooler(name)]
    rest = [name for name in weights.missing if not _is_pooler(name)]
    begin_anew = "name a folder that has them, or set model.random_init to true to start from random values alone"
    others = f"; the files have {name_some(weights.leftover, 3)} instead" if weights.leftover else ""
    if len(weights.missing) == weights.num_wanted:
        yield Remark(
            f"{use.source}: none of the encoder's {weights.num_wanted} tensors is in its files: expected "
            f"{name_some(weights.missing, 3)}{others}",
            begin_anew,
        )
    elif rest:
        yield Remark(
            f"{use.source}: {len(rest)} of the encoder's {weights.num_wanted} tensors aren't in its files: "
            f"{name_some(rest, 3)}{others}",
            begin_anew,
        )
    if pooler and not rest and use.pooling == "cls":
        yield Remark(
            f"{use.source}: its files have no pooler, so that with model.pooling: cls heads see an encoder's output "
            "through a layer of random values",
            "set model.pooling to mean, which needs no pooler",
            is_error=False,
        )


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


# Length.


def longest_input(encoder: nn.Module) -> int | None:
    """For how many tokens an encoder has positions; None if it says no number.

    RoBERTa and its kin number positions from `padding_idx + 1` on, and have as many rows fewer to give.
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
            f"training.max_length: {use.source} computes positions of any number, and its configuration names "
            f"{longest}; asked for {use.max_length}",
            "expect worse results on texts that are longer than those of its pretraining",
            is_error=False,
        )


def _has_position_table(encoder: PreTrainedModel) -> bool:
    """Whether an encoder looks positions up, in a table of as many rows as its configuration says, or of two more, as
    BART's kin have. Others compute positions (rotary ones, sinusoids, distances between tokens)."""
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
        f"training.max_length: {use.source} takes {longest} tokens at most, asked for {use.max_length}",
        f"set training.max_length to {longest} or less",
    )


# Tokenizer.


def _tokenizer(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, use: Use) -> Iterator[Remark]:
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token
        own = f"`tokenizer.pad_token = {end!r}` (its end token)," if end else "`tokenizer.add_special_tokens`,"
        yield Remark(
            f"{use.source}: its tokenizer has no padding token, so that texts of different length can't be in one "
            "batch",
            f"give it one with {own} save model and tokenizer in one folder, and name that folder as the model",
        )
    words = word_embeddings(encoder)
    if words is not None and (largest := max(tokenizer.get_vocab().values(), default=-1)) >= len(words):
        yield Remark(
            f"{use.source}: its tokenizer numbers tokens up to {largest}, and the encoder has embeddings for "
            f"{len(words)}, the last of which is {len(words) - 1}",
            "use the tokenizer that was saved with the encoder, or give the encoder more embeddings with "
            "`resize_token_embeddings`",
        )
    if use.pooling == "cls" and (place := _place_of_cls(tokenizer)) is not None and place > 0:
        yield Remark(
            f"{use.source}: with model.pooling: cls heads see the first token, and its tokenizer puts "
            f"{tokenizer.cls_token} last",
            "set model.pooling to last",
        )


def _place_of_cls(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """At which place a text has its CLS token; None if it has none."""
    ids = tokenizer(_PLAIN_WORDS[0])["input_ids"]
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else None


# What it does.


@dataclass(frozen=True)
class _Texts:
    """Inputs that an encoder is tried on."""

    long: Inputs
    """Of two rows: the short text, and one of the longest input's tokens."""
    short: Inputs
    changed: Inputs
    """The short text with another last word."""


def _tried(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, use: Use) -> Iterator[Remark]:
    """What comes of it when texts are encoded."""
    words = _known_words(tokenizer)
    if len(words) < 3:
        yield Remark(f"{use.source}: not tried, since its tokenizer knows no three words", "try it in a round", False)
        return
    texts = _texts(tokenizer, words, use)
    pooling = use.pooling or "mean"
    try:
        alone, changed = (encode_texts(encoder, one, pooling)[0] for one in (texts.short, texts.changed))
    except Exception as error:  # whatever an encoder's code raises
        yield _fails_at_all(use, error)
        return
    try:
        beside = encode_texts(encoder, texts.long, pooling)[0]
    except Exception as error:  # likewise
        yield _fails_at(encoder, texts.long, pooling, use, error)
        return
    if not all(bool(one.isfinite().all()) for one in (alone, beside, changed)):
        yield Remark(f"{use.source}: its output for a text is NaN or infinite", "use weights that are finite")
        return
    if (moved := _difference(alone, beside)) > ROUNDING:
        yield Remark(
            f"{use.source}: a text's vector differs by {moved:.1%} beside a longer text, since padding goes into it",
            "set training.train_sampling_strategy to group_by_length, which pads less, or use another encoder",
            is_error=False,
        )
    if _is_cut(texts) or _difference(alone, changed) > UNCHANGED:
        return
    last, changed_last = (encode_texts(encoder, one, "last")[0] for one in (texts.short, texts.changed))
    if use.pooling == "cls" and _difference(last, changed_last) > UNCHANGED:
        yield Remark(
            f"{use.source}: with model.pooling: cls heads see the first token, and the model is causal: its first "
            "token sees only itself, and no other word of the text",
            "set model.pooling to last, or to mean",
        )
    else:
        yield Remark(
            f"{use.source}: its output does not change with a text's last word", "use another encoder", is_error=False
        )


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest, as a share of the largest number."""
    scale = max(float(one.abs().max()), torch.finfo(one.dtype).tiny)
    return float((one - other).abs().max()) / scale


def _is_cut(texts: _Texts) -> bool:
    """Whether the last word is beyond the longest input."""
    return all(torch.equal(one, texts.changed[name]) for name, one in texts.short.items())


def _fails_at_all(use: Use, error: Exception) -> Remark:
    """What to say of an encoder that can't take a short text, or a short pair where there are pairs."""
    if use.pairs:
        return Remark(
            f"{use.source}: it can't encode what its tokenizer makes of a pair of texts ({_in_words(error)})",
            "use another encoder: one that takes pairs, with a `type_vocab_size` of 2 or more where its tokenizer "
            "gives the second text another token type",
        )
    return Remark(
        f"{use.source}: it can't encode what its tokenizer makes of a text ({_in_words(error)})",
        "use another encoder: one that takes a text's token ids",
    )


def _fails_at(encoder: nn.Module, long: Inputs, pooling: Pooling, use: Use, error: Exception) -> Remark:
    """What to say of an encoder that can't take the longest input."""
    moved = padded_behind(long, is_token(encoder, long))
    length = next(iter(moved.values())).shape[1]

    def fails(count: int) -> bool:
        try:
            encode_texts(encoder, {name: one[:, :count] for name, one in moved.items()}, pooling)
        except Exception:  # whatever it is, this length doesn't work
            return True
        return False

    longest = bisect.bisect_left(range(1, length), True, key=fails)
    if longest == 0:
        return Remark(
            f"{use.source}: it can't encode a batch of two texts, one of them padded ({_in_words(error)})",
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
    """Three words that a tokenizer knows and tells apart, if it has them."""
    known: dict[tuple[int, ...], str] = {}
    for word in (*_PLAIN_WORDS, *islice(_vocabulary(tokenizer), _WORDS_TRIED)):
        ids = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        if ids and tokenizer.unk_token_id not in ids:
            known.setdefault(ids, word)
        if len(known) == 3:
            break
    return list(known.values())


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The words among a tokenizer's tokens."""
    special = set(tokenizer.all_special_ids)
    for number in sorted(tokenizer.get_vocab().values()):
        word = "" if number in special else tokenizer.decode([number]).strip()
        if word.isalpha():
            yield word


def _in_words(error: Exception) -> str:
    """The first line of an error, with its kind."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said[:200]}"


@contextmanager
def _undisturbed(encoder: nn.Module) -> Iterator[None]:
    """Have an encoder evaluate here, and leave it and the global random state as they were."""
    with unchanged(encoder), drawing_from(0), torch.no_grad():
        encoder.eval()
        yield
