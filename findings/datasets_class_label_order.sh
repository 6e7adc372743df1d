#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1): label names of several Parquet files
#
# Two Parquet files were written by `datasets`. Both have a label column with the classes "no" and "yes" (ClassLabel), and
# each file declares its own order of the two names in its metadata. In every row the text is the name of the label.
#
# What one would guess: reading both files with load_dataset gives each row the label that its file says, or an error as
# concatenate_datasets gives one for the same two data sets.
#
# What happens: the names of the first file are taken for all files, and the numbers of the others are kept. So all labels
# of the second file are inverted, without an error or a warning. The same happens where the files are two splits, such as
# train and validation, and in cast_column(label, ClassLabel(...)) with the names in another order
# (align_labels_with_mapping maps by name).
#
# Output seen:
#   one file alone:          yes->yes no->no
#   two files, one split:    no->no yes->yes yes->no no->yes
#   two files, two splits:   no->no yes->yes | yes->no no->yes
#   cast_column:             no->yes yes->no
#   concatenate_datasets:    ValueError: The features can't be aligned
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$folder/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1 HF_HUB_OFFLINE=1

cat > look.py <<'PYTHON'
import datasets
from datasets import ClassLabel, Dataset, Features, Value


def made(names, words):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": words, "label": words}, features=features)


def said(dataset):
    label = dataset.features["label"]
    return " ".join(f"{row['text']}->{label.int2str(row['label'])}" for row in dataset)


first, second = made(["no", "yes"], ["no", "yes"]), made(["yes", "no"], ["yes", "no"])
first.to_parquet("first.parquet")
second.to_parquet("second.parquet")

alone = datasets.load_dataset("parquet", data_files="second.parquet", split="train")
both = datasets.load_dataset("parquet", data_files=["first.parquet", "second.parquet"], split="train")
splits = datasets.load_dataset("parquet", data_files={"train": "first.parquet", "validation": "second.parquet"})
cast = first.cast_column("label", ClassLabel(names=["yes", "no"]))
try:
    together = said(datasets.concatenate_datasets([first, second]))
except ValueError as error:
    together = f"ValueError: {str(error)[:29]}"

print(f"""\
one file alone:          {said(alone)}
two files, one split:    {said(both)}
two files, two splits:   {said(splits["train"])} | {said(splits["validation"])}
cast_column:             {said(cast)}
concatenate_datasets:    {together}""")
PYTHON

venv/bin/python look.py | tee seen.txt
cat > expected.txt <<'TEXT'
one file alone:          yes->yes no->no
two files, one split:    no->no yes->yes yes->no no->yes
two files, two splits:   no->no yes->yes | yes->no no->yes
cast_column:             no->yes yes->no
concatenate_datasets:    ValueError: The features can't be aligned
TEXT
diff expected.txt seen.txt
