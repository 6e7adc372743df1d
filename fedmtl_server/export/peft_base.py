"""The model that readers of a folder of `peft` load first, compared with the one that the run started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from fedmtl_core.errors import ModelUnavailableError, UserError, first_line
from fedmtl_core.model.encoders import locate
from fedmtl_core.randomness import drawing_from

OPTION = "--adapters"
INSTEAD = f"export without {OPTION}, which writes a model with the adapters merged into its weights"


def load_base(source: str, options: Mapping[str, int]) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load the model that readers load first, and return it with the names that its files don't have."""
    try:
        with drawing_from(0):
            base, info = AutoModelForSequenceClassification.from_pretrained(
                locate(source), dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
            )
    except ModelUnavailableError:
        raise
    except Exception as error:  # each of hundreds of model families raises its own errors
        raise ModelUnavailableError(
            f"{OPTION}: AutoModelForSequenceClassification can't load {source}: {first_line(error)}; {INSTEAD}"
        ) from None
    return base.eval(), frozenset(info["missing_keys"])


def differing_tensors(base: PreTrainedModel, ours: Mapping[str, Tensor], saved: Iterable[str]) -> list[str]:
    """Return the names of the tensors that aren't in the folder and differ from the run's."""
    theirs = base.state_dict()
    names = [name for name in dict.fromkeys([*ours, *theirs]) if not is_in(name, saved)]
    return [one for one in names if one not in ours or one not in theirs or not torch.equal(ours[one], theirs[one])]


def poolers(differing: Sequence[str], missing: Iterable[str], source: str) -> set[str]:
    """Return the modules to save beside the head: a pooler that the base's files don't have.

    Raises:
        UserError: other weights of the base differ from those that the run started from.
    """
    absent, saved = set(missing), set()
    for name in differing:
        path = name.split(".")
        if name not in absent or "pooler" not in path:
            raise UserError(
                f"{OPTION}: the weights of {source} aren't those that the run started from: {name} "
                f"is the first of {len(differing)} tensors that differ; {INSTEAD}"
            )
        saved.add(".".join(path[: path.index("pooler") + 1]))
    return saved


def require_unique(base: PreTrainedModel, saved: Iterable[str]) -> None:
    """Check that each saved module is the only one that `peft` finds by its name.

    Raises:
        UserError: another module's name ends like it.
    """
    modules = [name for name, _ in base.named_modules()]
    for name in saved:
        if others := [one for one in modules if one.endswith(f".{name}")]:
            raise UserError(f"{OPTION}: peft would confuse {name} with {others[0]}; {INSTEAD}")


def is_in(name: str, modules: Iterable[str]) -> bool:
    """Return whether a name is that of one of some modules, or of something in it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
