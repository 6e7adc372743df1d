"""The model card of a folder with a task's adapters and head, without the encoder."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.export.model_card import CardMetadata, card_with, is_hub_name


def card_of_adapters(metadata: CardMetadata, spec: TaskSpec, architecture: str, options: Mapping[str, int]) -> str:
    """Return the model card of one task's adapters and head.

    Args:
        metadata: the facts about the run.
        spec: the task.
        architecture: the class of `transformers` that the adapters are loaded onto.
        options: the arguments that `from_pretrained` of that class needs.
    """
    arguments = "".join(f", {name}={value}" for name, value in options.items())
    texts = ", ".join(['"a text"', '"another"'][: len(spec.text_columns)])
    outputs = (
        f"The outputs are the logits of the labels {', '.join(f'`{label}`' for label in spec.labels)}."
        if spec.labels
        else "The only output is the predicted number."
    )
    imports, base = _base(metadata.base_model)
    return card_with(
        metadata,
        f"{spec.name}, adapters trained with FedMTL",
        [spec],
        f"""This folder has the low-rank adapters of a federated multi-task training run and the head of its
task `{spec.name}`: {spec.kind} of {"pairs of texts" if len(spec.text_columns) == 2 else "texts"}. {outputs}
Inputs are truncated to {metadata.max_length} tokens, as in training.

## Use

The encoder is not part of this folder. {_where(metadata.base_model)}

```python
{imports}from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
source = {base}
base = AutoModelForSequenceClassification.from_pretrained(source{arguments})  # {architecture}
model = PeftModel.from_pretrained(base, folder).eval()
logits = model(**tokenizer({texts}, truncation=True, return_tensors="pt")).logits
```
""",
        pipeline_tag="text-classification",
        is_merged=False,
    )


def _base(source: str) -> tuple[str, str]:
    """Return the import that the base's location needs, and the location, both as Python."""
    package, slash, folder = source.removeprefix("python:").partition("/")
    if not source.startswith("python:"):
        return "", f'"{source}"'
    inside = "".join(f' / "{part}"' for part in folder.split("/")) if slash else ""
    return "from importlib.resources import files\n\n", f'str(files("{package}"){inside})'


def _where(source: str) -> str:
    """Return the sentences about the place that the base's weights come from."""
    if is_hub_name(source):
        return f"Its weights are those of `{source}` on the Hugging Face Hub."
    if source.startswith("python:"):
        package = source.removeprefix("python:").partition("/")[0]
        return f"Its weights are in the Python package `{package}`."
    return f"""Its weights were in the folder `{source}`
of the server's machine; use a folder with the same weights."""
