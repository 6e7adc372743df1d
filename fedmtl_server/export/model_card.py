"""Model cards: what a model's reader has to know, as Markdown with the hub's front matter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from fedmtl_core.config import Config
from fedmtl_core.identifiers import name_task
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.spec import TaskSpec

_METRIC_IDS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""Names that the hub has for metrics, where they differ."""
_SEES = {"cls": "the encoder's pooled first token", "mean": "the mean over all tokens", "last": "the last token"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SharingFacts:
    """Who shares what, where it isn't an encoder that all share and a head for each task."""

    scopes: Mapping[str, tuple[Sequence[str], int]]
    """By scope, the tasks that share it, and how many parameters it has."""
    local: Mapping[str, int]
    """By task, how many tensors its clients keep for themselves."""


@dataclass(frozen=True)
class CardFacts:
    """What is said of a run. Clients are counted, not named."""

    run_id: str
    base_model: str
    round: int
    """Whose model it is."""
    num_rounds: int
    """Of training, planned."""
    tasks: Sequence[TaskSpec]
    pooling: Pooling
    max_length: int
    metrics: Mapping[str, Mapping[str, float]]
    """Of this model, by task."""
    num_clients: Mapping[str, int] | None
    """By task, the clients whose updates are in this model; None if it isn't known."""
    sharing: SharingFacts | None = None
    """None where all share the encoder, and each task has its head."""
    auxiliary: Collection[str] = ()
    """The tasks that were there for the others' sake."""


def card_of_task(facts: CardFacts, spec: TaskSpec, architecture: str, *, is_native: bool) -> str:
    """The card of one task's model."""
    if spec.kind == "masked_lm":
        return _card_of_masked_lm(facts, spec, architecture)
    remote = "" if is_native else ", trust_remote_code=True"
    pair = len(spec.text_columns) == 2
    of, texts = ("pairs of texts", '"a text", "another"') if pair else ("texts", '"a text"')
    outputs = (
        "The outputs are the labels " + ", ".join(f"`{label}`" for label in spec.labels)
        if spec.labels
        else "The only output is the predicted number"
    )
    own = (
        ""
        if is_native
        else "\nNo class of `transformers` computes this model, so that `modeling_fedmtl.py` beside it does. Read it "
        "before you trust it.\n"
    )
    return _card(
        facts,
        f"{spec.name}, trained with FedMTL",
        [spec],
        f"""The encoder of a federated multi-task run with the head of its task {spec.name}: {spec.kind} of {of}.
{outputs}. The head sees {_SEES[facts.pooling]}; inputs are cut after {facts.max_length} tokens.

## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder{remote})
model = AutoModelForSequenceClassification.from_pretrained(folder{remote})  # {architecture}
logits = model(**tokenizer({texts}, truncation=True, return_tensors="pt")).logits
```
{own}""",
        pipeline_tag="text-classification",
    )


def _card_of_masked_lm(facts: CardFacts, spec: TaskSpec, architecture: str) -> str:
    return _card(
        facts,
        f"{spec.name}, trained with FedMTL",
        [spec],
        f"""The encoder of a federated multi-task run with the head of its task {spec.name}, which finds masked words
again (Devlin et al. 2019, arXiv:1810.04805). Inputs are cut after {facts.max_length} tokens.

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)  # {architecture}
inputs = tokenizer(f"a {{tokenizer.mask_token}} text", truncation=True, return_tensors="pt")
logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
```
""",
        pipeline_tag="fill-mask",
    )


def card_of_all(facts: CardFacts, config: Config, encoders: Sequence[str], *, of_encoder_decoder: bool = False) -> str:
    """The card of a whole model, with the folders of the encoders in it.

    Args:
        of_encoder_decoder: whether the library's class for the encoder's folder has a decoder too.
    """
    opening = "The shared encoder of a federated multi-task run, and the heads of all its tasks."
    names = "encoder and heads: `encoder.…`, and a `heads.TASK.…` for each task"
    if facts.sharing is not None:
        opening = "What the server has of a federated multi-task run, whose tasks share parts of the model (see below)."
        names = "`encoder.…` and `heads.TASK.…`, or `SCOPE/encoder.…` where several scopes have one"
    folders = "".join(
        f"| `{name}/` | the encoder{'' if name == 'encoder' else ' of ' + name.rpartition('/')[2]} with its tokenizer, "
        "for `AutoModel.from_pretrained` |\n"
        for name in encoders
    )
    return _card(
        facts,
        "A multi-task model trained with FedMTL",
        facts.tasks,
        f"""{opening} A head sees
{_SEES[facts.pooling]}.

| file | what |
| --- | --- |
{folders}| `fedmtl.safetensors` | {names} |

## Use

```python
from safetensors.torch import load_file
{_use_of_encoder(encoders, of_encoder_decoder)}tensors = load_file("fedmtl.safetensors")
{_use_of_head(facts, next(iter(config.tasks)))}```
""",
        pipeline_tag="feature-extraction",
    )


def _use_of_head(facts: CardFacts, task: str) -> str:
    if facts.sharing is not None and task in facts.sharing.local:
        return ""
    return f"""head = {{name: tensor for name, tensor in tensors.items() if name.startswith("heads.{task}.")}}
"""


def _use_of_encoder(encoders: Sequence[str], of_encoder_decoder: bool) -> str:
    if not encoders:
        return "\n"
    alone = ".get_encoder()  # the decoder isn't part of the run, and random" if of_encoder_decoder else ""
    return f"""from transformers import AutoModel, AutoTokenizer

encoder = AutoModel.from_pretrained("{encoders[0]}"){alone}
tokenizer = AutoTokenizer.from_pretrained("{encoders[0]}")
"""


def _card(facts: CardFacts, title: str, specs: Sequence[TaskSpec], text: str, *, pipeline_tag: str) -> str:
    """Front matter, title, a text, and what every card says."""
    front_matter = ModelCardData(
        library_name="transformers",
        base_model=facts.base_model if _HUB_NAME.fullmatch(facts.base_model) else None,
        tags=["federated-learning", "multi-task-learning", "fedmtl"],
        model_name=title,
        eval_results=[result for spec in specs for result in _eval_results(facts, spec)] or None,
        pipeline_tag=pipeline_tag,
    )
    return f"""---
{front_matter.to_yaml()}
---

# {title}

{text}
## Training

Round {facts.round} of {facts.num_rounds} of the run `{facts.run_id}`, begun from `{facts.base_model}`.
{_sharing(facts.sharing)}

{_table(facts)}

The metrics are of this very model, measured by the clients on evaluation rows of their own: each task's over those of
all of its clients. Metrics that are undefined are left out.

## Limitations

- Nobody but the clients has seen the rows that it was trained and measured on: neither is checked here.
- It is only as good on other texts as these are like the clients'.
- Averaging hides no single client's influence: there is neither differential privacy nor secure aggregation in it.
"""


def _sharing(sharing: SharingFacts | None) -> str:
    """What is the average over whose clients."""
    opening = "In each round clients trained encoder and head on rows of their own; "
    if sharing is None:
        return f"""{opening}the encoder is the average over the clients of all
tasks, a head that over its task's."""
    lines = [
        f"{opening}each part is the average over the clients of the tasks that share it:",
        "",
        "| scope | tasks | parameters |",
        "| --- | --- | ---: |",
        *(f"| `{scope}` | {', '.join(tasks)} | {size:,} |" for scope, (tasks, size) in sharing.scopes.items()),
    ]
    if sharing.local:
        of = ", ".join(f"{count} tensors of {task}'s model" for task, count in sharing.local.items())
        lines += ["", f"Not here are {of}: each client keeps its own."]
    return "\n".join(lines)


def _table(facts: CardFacts) -> str:
    lines = ["| task | kind | clients that contributed | metrics |", "| --- | --- | ---: | --- |"]
    for spec in facts.tasks:
        clients = "not known" if facts.num_clients is None else str(facts.num_clients.get(spec.name, 0))
        values = facts.metrics.get(spec.name, {})
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in values.items()) or "not measured"
        name = name_task(spec.name, auxiliary=spec.name in facts.auxiliary)
        lines.append(f"| {name} | {spec.kind} | {clients} | {metrics} |")
    return "\n".join(lines)


def _eval_results(facts: CardFacts, spec: TaskSpec) -> list[EvalResult]:
    values = facts.metrics.get(spec.name, {})
    return [
        EvalResult(
            task_type="fill-mask" if spec.kind == "masked_lm" else "text-classification",
            dataset_type="private",
            dataset_name=f"{spec.name}: the clients' own evaluation rows",
            metric_type=_METRIC_IDS.get(name, name),
            metric_name=name,
            metric_value=round(values[name], 6),
        )
        for name in spec.metrics
        if name in values
    ]
