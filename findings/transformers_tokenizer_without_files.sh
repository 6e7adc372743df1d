#!/usr/bin/env bash
# transformers 5.23.0, tokenizers as it requires: AutoTokenizer on a folder that has a model's config.json alone.
#
# One would guess an error: the folder has no tokenizer file and no vocabulary, as after `model.save_pretrained` without
# `tokenizer.save_pretrained`.
#
# For most families AutoTokenizer returns a new tokenizer that knows its special tokens only, without a warning. What it
# makes of a text then depends on the family. BERT turns every word into [UNK], so that all texts with the same number
# of words are the same input. RoBERTa has no id for an unknown word and leaves words out: every text is `<s></s>`. GPT-2
# and Qwen2 return an empty list, a text of no tokens. T5 returns a mark for each space. A model trains on all of these.
# MPNet, ModernBERT and Llama raise an error.
#
# Output:
#   bert        5 entries  [CLS] [UNK] [UNK] [UNK] [SEP]
#   albert      5 entries  [CLS] <unk> <unk> <unk> [SEP]
#   roberta     5 entries  <s> </s>
#   gpt2        1 entries  (no token)
#   qwen2       1 entries  (no token)
#   t5        104 entries  ▁ <unk> ▁ <unk> ▁ <unk> </s>
#   mpnet       Exception
#   modernbert  ValueError
#   llama       ValueError
#   two texts of three words are the same input for bert: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, AutoTokenizer

transformers.logging.set_verbosity_error()
root = Path(sys.argv[1])


def tokenizer_of(family):
    CONFIG_MAPPING[family]().save_pretrained(root / family)
    assert sorted(path.name for path in (root / family).iterdir()) == ["config.json"]
    return AutoTokenizer.from_pretrained(root / family)


expected = {
    "bert": (5, "[CLS] [UNK] [UNK] [UNK] [SEP]"),
    "albert": (5, "[CLS] <unk> <unk> <unk> [SEP]"),
    "roberta": (5, "<s> </s>"),
    "gpt2": (1, ""),
    "qwen2": (1, ""),
    "t5": (104, "▁ <unk> ▁ <unk> ▁ <unk> </s>"),
}
for family, (size, tokens) in expected.items():
    tokenizer = tokenizer_of(family)
    got = " ".join(tokenizer.convert_ids_to_tokens(tokenizer("a good film")["input_ids"]))
    print(f"{family:9s} {len(tokenizer):3d} entries  {got or '(no token)'}")
    assert (len(tokenizer), got) == (size, tokens)
for family in ("mpnet", "modernbert", "llama"):
    try:
        tokenizer_of(family)("a good film")
    except Exception as error:
        print(f"{family:11s} {type(error).__name__}")
    else:
        raise AssertionError(family)
bert = tokenizer_of("bert")
same = bert("a good film")["input_ids"] == bert("very bad acting")["input_ids"]
print(f"two texts of three words are the same input for bert: {same}")
assert same
PYTHON
