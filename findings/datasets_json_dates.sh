#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1): load_dataset("json", features=Features({"text": Value("string"), …})).
#
# One would guess: a JSON string in a column that is declared as a string is read as it stands in the file.
#
# What happens: the declared features aren't passed to the parser. pyarrow guesses the types of each block of 10 MB, and
# a column whose strings in this block all look like dates becomes timestamp[s]; only then it is cast to string. So
#   - "2021-03-04" becomes "2021-03-04 00:00:00",
#   - "2021-03-04T12:00:00+02:00" becomes "2021-03-04 10:00:00": another hour, and the offset is gone,
#   - one string has two spellings in one column, depending on the other rows of its block: a class label "2021-03-04"
#     is two labels.
# Neither a warning nor an error is given.
#
# Output seen:
#   declared as strings, read as: ['2021-03-04 00:00:00', '2021-05-06 00:00:00']
#   with an offset:               ['2021-03-04 10:00:00']
#   beside another text:          ['2021-03-04', 'in spring']
#   one string of a file of 11 MB: ['2021-03-04', '2021-03-04 00:00:00']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$folder"

"$folder/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

from datasets import Features, Value, load_dataset

STRINGS = Features({"text": Value("string"), "note": Value("string")})


def read(*rows):
    path = Path(f"{read.count}.jsonl")
    read.count += 1
    path.write_text("".join(json.dumps({"text": text, "note": note}) + "\n" for text, note in rows))
    return load_dataset("json", data_files=str(path), split="train", features=STRINGS)["text"][:]


read.count = 0

dates = read(("2021-03-04", ""), ("2021-05-06", ""))
print("declared as strings, read as:", dates)
offset = read(("2021-03-04T12:00:00+02:00", ""))
print("with an offset:              ", offset)
beside = read(("2021-03-04", ""), ("in spring", ""))
print("beside another text:         ", beside)
long = "x" * 1000
blocks = read(*[("2021-03-04", long)] * 11_000, ("in spring", long))
spellings = sorted(set(blocks) - {"in spring"})
print("one string of a file of 11 MB:", spellings)

assert dates == ["2021-03-04 00:00:00", "2021-05-06 00:00:00"], dates
assert offset == ["2021-03-04 10:00:00"], offset
assert beside == ["2021-03-04", "in spring"], beside
assert spellings == ["2021-03-04", "2021-03-04 00:00:00"], spellings
PYTHON
