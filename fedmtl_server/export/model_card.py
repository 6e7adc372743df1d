"""Model cards for exported models: Markdown with the front matter of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fedmtl_core.config import Config
from fedmtl_core.config.adapter_texts import layers_in_words
from fedmtl_core.config.adapters import AdaptersConfig
from fedmtl_core.identifiers import name_task
from fedmtl_core.model.encoders import is_on_this_machine
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.spec import TaskSpec

_METRIC_IDS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""The hub's names of metrics, where they differ from FedMTL's."""
_HEAD_INPUTS = {
    "cls": "the encoder's pooled first token",
    "mean": "the mean over all tokens",
    "last": "the last token",
}
"""By pooling, the input of a head."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class SharingMetadata:
    """The sharing of layers in a run that isn't one shared encoder with a head for each task."""

    scopes: Mapping[str, tuple[Sequence[str], int]]
    """By scope, the tasks that share the scope, and its number of parameters."""
    local: Mapping[str, int]
    """By task, the number of tensors that stay on the task's clients."""


@dataclass(frozen=True)
class AdapterMetadata:
    """The adapters of a run."""

    section: AdaptersConfig
    base_digest: str
    """The SHA-256, in hexadecimal, of the parameters that training left as they were."""


@dataclass(frozen=True)
class CardMetadata:
    """The facts about a run on its model cards. Clients are counted, not named."""

    run_id: str
    base_model: str
    round: int
    """The round whose model is exported."""
    num_rounds: int
    """The planned number of training rounds."""
    tasks: Sequence[TaskSpec]
    pooling: Pooling
    max_length: int
    metrics: Mapping[str, Mapping[str, float]]
    """By task, the metrics of the exported model."""
    num_clients: Mapping[str, int] | None
    """By task, the number of clients whose updates are in the exported model; None if unknown."""
    sharing: SharingMetadata | None = None
    """None if all tasks share the encoder, and each task has its own head."""
    auxiliary: Collection[str] = ()
    """The auxiliary tasks."""
    sources: Mapping[str, Mapping[str, Sequence[int]]] | None = field(default_factory=dict)
    """By task, the other tasks whose updates its own layers took, with the rounds; None if unknown."""
    started_from: tuple[str, int] | None = None
    """The id of the run and its round whose model this run started from; None if it started from the base model."""
    adapters: AdapterMetadata | None = None
    """None if training changed the encoder's own parameters."""


def card_of_task(metadata: CardMetadata, spec: TaskSpec, architecture: str, *, is_native: bool) -> str:
    """Return the model card of one task's model."""
    if spec.kind == "masked_lm":
        return _card_of_masked_lm(metadata, spec, architecture)
    remote = "" if is_native else ", trust_remote_code=True"
    pair = len(spec.text_columns) == 2
    of, texts = ("pairs of texts", '"a text", "another"') if pair else ("texts", '"a text"')
    outputs = (
        "The outputs are the logits of the labels " + ", ".join(f"`{label}`" for label in spec.labels)
        if spec.labels
        else "The only output is the predicted number"
    )
    own = (
        ""
        if is_native
        else "\nNo class of `transformers` computes this model. `trust_remote_code=True` therefore runs the file "
        "`modeling_fedmtl.py` in this folder. Read the file before you trust it.\n"
    )
    return card_with(
        metadata,
        f"{spec.name}, trained with FedMTL",
        [spec],
        f"""This model consists of the encoder of a federated multi-task training run and the head of its
task `{spec.name}`: {spec.kind} of {of}. {outputs}.
The head's input is {_HEAD_INPUTS[metadata.pooling]}.
Inputs are truncated to {metadata.max_length} tokens, as in training.

## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder{remote})
model = AutoModelForSequenceClassification.from_pretrained(folder{remote})  # {architecture}
logits = model(**tokenizer({texts}, truncation=True, return_tensors="pt")).logits
```
{own}""",
        pipeline_tag="text-classification",
    )


def _card_of_masked_lm(metadata: CardMetadata, spec: TaskSpec, architecture: str) -> str:
    return card_with(
        metadata,
        f"{spec.name}, trained with FedMTL",
        [spec],
        f"""This model consists of the encoder of a federated multi-task training run and the head of its
task `{spec.name}`, which predicts masked words (Devlin et al. 2019, arXiv:1810.04805).
Inputs are truncated to {metadata.max_length} tokens, as in training.

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)  # {architecture}
inputs = tokenizer(f"a {{tokenizer.mask_token}} text", truncation=True, return_tensors="pt")
logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
```
""",
        pipeline_tag="fill-mask",
    )


def card_of_all(
    metadata: CardMetadata, config: Config, encoders: Sequence[str], *, of_encoder_decoder: bool = False
) -> str:
    """Return the model card of a run's whole model.

    Args:
        metadata: the facts about the run.
        config: the run's configuration.
        encoders: the folders that contain the encoders.
        of_encoder_decoder: whether the class of `transformers` for an encoder's folder also has a decoder.
    """
    opening = (
        "This folder contains the shared encoder of a federated multi-task training run and the heads of all its tasks."
    )
    of = "the encoder" if metadata.adapters is None else "the encoder's adapters"
    names = f"the parameters of {of} (`encoder.…`) and of each task's head (`heads.TASK.…`)"
    if metadata.sharing is not None:
        opening = (
            "This folder contains the parameters of a federated multi-task training run that its server has. The tasks "
            "share only parts of the model; the table under Training lists them."
        )
        what = "parameters" if metadata.adapters is None else "parameters of the adapters and heads"
        names = f"{what} as `encoder.…` and `heads.TASK.…`, or as `SCOPE/encoder.…` if several scopes have one"
    folders = "".join(
        f"| `{name}/` | the encoder{'' if name == 'encoder' else ' of ' + name.rpartition('/')[2]} with its tokenizer, "
        "for `AutoModel.from_pretrained` |\n"
        for name in encoders
    )
    return card_with(
        metadata,
        "A multi-task model trained with FedMTL",
        metadata.tasks,
        f"""{opening}
The input of a head is {_HEAD_INPUTS[metadata.pooling]}.

| file | contents |
| --- | --- |
{folders}| `fedmtl.safetensors` | {names} |

## Use

```python
from safetensors.torch import load_file
{_use_of_encoder(encoders, of_encoder_decoder)}tensors = load_file("fedmtl.safetensors")
{_use_of_head(metadata, next(iter(config.tasks)))}```
""",
        pipeline_tag="feature-extraction",
    )


def _use_of_head(metadata: CardMetadata, task: str) -> str:
    if metadata.sharing is not None and task in metadata.sharing.local:
        return ""
    return f"""head = {{name: tensor for name, tensor in tensors.items() if name.startswith("heads.{task}.")}}
"""


def _use_of_encoder(encoders: Sequence[str], of_encoder_decoder: bool) -> str:
    if not encoders:
        return "\n"
    alone = ".get_encoder()  # the decoder is untrained and has random values" if of_encoder_decoder else ""
    return f"""from transformers import AutoModel, AutoTokenizer

encoder = AutoModel.from_pretrained("{encoders[0]}"){alone}
tokenizer = AutoTokenizer.from_pretrained("{encoders[0]}")
"""


def is_hub_name(source: str) -> bool:
    """Return whether an encoder's name is a name on the Hugging Face Hub, such as `org/name` or `bert-base-uncased`."""
    return _HUB_NAME.fullmatch(source) is not None and not is_on_this_machine(source)


def card_with(
    metadata: CardMetadata,
    title: str,
    specs: Sequence[TaskSpec],
    text: str,
    *,
    pipeline_tag: str,
    is_merged: bool = True,
) -> str:
    """Return a card of front matter, title, the given text, and the sections of every card.

    Args:
        metadata: the facts about the run.
        title: the title.
        specs: the tasks whose metrics are the model's results.
        text: the part between the title and the section about training.
        pipeline_tag: the hub's name of what the model does.
        is_merged: whether the run's adapters, if it has any, are merged into the weights.
    """
    is_on_hub = is_hub_name(metadata.base_model)
    relation: dict[str, Any] = {} if is_merged or not is_on_hub else {"base_model_relation": "adapter"}
    front_matter = ModelCardData(
        library_name="transformers" if is_merged else "peft",
        base_model=metadata.base_model if is_on_hub else None,
        tags=["federated-learning", "multi-task-learning", "fedmtl", *([] if is_merged else ["lora"])],
        model_name=title,
        eval_results=[result for spec in specs for result in _eval_results(metadata, spec)] or None,
        pipeline_tag=pipeline_tag,
        **relation,
    )
    return f"""---
{front_matter.to_yaml()}
---

# {title}

{text}
## Training

The model is from round {metadata.round} of {metadata.num_rounds} of the run `{metadata.run_id}`. Training started
from {_start(metadata)}. {_sharing(metadata)}
{_adapters(metadata.adapters, is_merged=is_merged)}{_sources(metadata, specs)}
{_table(metadata)}

The clients measured the metrics of this model on their own evaluation data. The metrics of a task cover the data of
all clients of the task. Undefined metrics are omitted.

## Limitations

- Only the clients have seen the training and evaluation data. Nobody else has verified the data or the metrics.
- The model's quality on other texts depends on how similar they are to the clients' texts.
- Averaging doesn't hide the influence of a single client: training used neither differential privacy nor secure
  aggregation.
"""


def _start(metadata: CardMetadata) -> str:
    """Return the model that training started from, in words."""
    if metadata.started_from is None:
        return f"`{metadata.base_model}`"
    run_id, round_ = metadata.started_from
    return (
        f"the model of round {round_} of the run `{run_id}`, an encoder of the architecture of `{metadata.base_model}`"
    )


def _sharing(metadata: CardMetadata) -> str:
    """Return the sentences that explain which clients' models were averaged."""
    sharing, adapters = metadata.sharing, metadata.adapters
    trained = "the encoder" if adapters is None else "the encoder's adapters"
    opening = f"In each round, clients trained {trained} and\ntheir task's head on their own data."
    if sharing is None:
        average = "encoder is the average" if adapters is None else "adapters combine those"
        of = "over" if adapters is None else "of"
        return f"""{opening} The {average} {of} the clients of all tasks.
Each head is the average over the clients of its task."""
    lines = [
        f"{opening} Each part of the model (scope) is the average over the clients of\nthe tasks that share it:",
        "",
        "| scope | tasks | parameters |",
        "| --- | --- | ---: |",
        *(f"| `{scope}` | {', '.join(tasks)} | {size:,} |" for scope, (tasks, size) in sharing.scopes.items()),
    ]
    if sharing.local:
        of = ", ".join(f"{count} tensors of {task}'s model" for task, count in sharing.local.items())
        lines += ["", f"This folder doesn't contain {of}: each client keeps its own copy."]
    return "\n".join(lines)


def _adapters(adapters: AdapterMetadata | None, *, is_merged: bool) -> str:
    """Return the paragraph about the run's adapters; empty if it has none."""
    if adapters is None:
        return ""
    section = adapters.section
    a = " and the adapters' factors A" if section.aggregation == "freeze_a" else ""
    merged = "The adapters are merged into the weights of this model, which needs no `peft`."
    return f"""
Training left the encoder's own weights as they were, and changed low-rank adapters beside them: `{section.kind}` of
rank {section.rank} and alpha {section.alpha:g} in {layers_in_words(section)}, combined with
`aggregation: {section.aggregation}`. The SHA-256 of the unchanged parameters (the encoder's own{a}) is
`{adapters.base_digest}`.
{merged if is_merged else "This folder has the adapters and the head, without the encoder."}
"""


def _sources(metadata: CardMetadata, specs: Sequence[TaskSpec]) -> str:
    """Return the sentences about other tasks' updates in these tasks' own layers; empty if there are none."""
    if metadata.sources is None:
        return "\nIt is not known which other tasks' updates a task's own layers took.\n"
    lines = []
    for spec in specs:
        others = [f"`{other}` ({rounds_text(rounds)})" for other, rounds in metadata.sources.get(spec.name, {}).items()]
        if others:
            *first, last = others
            named = f"{', '.join(first)} and {last}" if first else last
            lines.append(f"In addition to its own updates, the encoder of `{spec.name}` took updates of {named}.")
    return "".join(f"\n{line}\n" for line in lines)


def rounds_text(rounds: Sequence[int]) -> str:
    """Return ascending rounds in words, such as `rounds 1 to 3, 7`."""
    spans: list[list[int]] = []
    for one in rounds:
        if spans and one == spans[-1][-1] + 1:
            spans[-1].append(one)
        else:
            spans.append([one])
    texts = [str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
    return f"{'round' if len(rounds) == 1 else 'rounds'} {', '.join(texts)}"


def _table(metadata: CardMetadata) -> str:
    lines = ["| task | type | contributing clients | metrics |", "| --- | --- | ---: | --- |"]
    for spec in metadata.tasks:
        clients = "not known" if metadata.num_clients is None else str(metadata.num_clients.get(spec.name, 0))
        values = metadata.metrics.get(spec.name, {})
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in values.items()) or "not measured"
        name = name_task(spec.name, auxiliary=spec.name in metadata.auxiliary)
        lines.append(f"| {name} | {spec.kind} | {clients} | {metrics} |")
    return "\n".join(lines)


def _eval_results(metadata: CardMetadata, spec: TaskSpec) -> list[EvalResult]:
    values = metadata.metrics.get(spec.name, {})
    return [
        EvalResult(
            task_type="fill-mask" if spec.kind == "masked_lm" else "text-classification",
            dataset_type="private",
            dataset_name=f"{spec.name}: the clients' own evaluation data",
            metric_type=_METRIC_IDS.get(name, name),
            metric_name=name,
            metric_value=round(values[name], 6),
        )
        for name in spec.metrics
        if name in values
    ]
