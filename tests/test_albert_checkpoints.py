"""ALBERT's checkpoints: those of ``transformers`` and ours are read by the other, bit for bit; others are refused."""

import dataclasses
import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_albert import CLASSES, IDS, SHARINGS, WHOLE_INPUT, by_their_names, make_config, make_theirs, scatter

from companion.albert import (
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForSequenceClassification,
    AlbertModel,
    load_albert,
    save_albert,
)
from companion.albert.checkpoints import _read_config, hugging_face_tensors

pytestmark = pytest.mark.usefixtures("one_thread")

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
WORDS = "albert.embeddings.word_embeddings.weight"

every_class = pytest.mark.parametrize("cls", CLASSES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def make_ours(cls, dtype=torch.float32, **changes):
    return scatter(cls(make_config(**changes)).to(dtype)).eval()


def labels_of(cls):
    return {"num_labels": 5} if cls is AlbertForSequenceClassification else {}


def read_by_transformers(cls, folder):
    """Read a folder with `transformers`, which would pass over what is missing or surplus."""
    theirs, info = getattr(transformers, cls.__name__).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return theirs


def pickle_weights(folder, tensors=None, **more):
    """Put ``pytorch_model.bin`` in the place of ``model.safetensors``."""
    tensors = load_file(folder / SAFETENSORS) if tensors is None else tensors
    (folder / SAFETENSORS).unlink()
    torch.save({**tensors, **more}, folder / PICKLED)


def change_weights(folder, change):
    tensors = load_file(folder / SAFETENSORS)
    change(tensors)
    save_file(tensors, folder / SAFETENSORS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(found, expected):
    found, expected = dict(found), dict(expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@every_dtype
@every_class
def test_what_we_write_comes_back_through_transformers_bit_for_bit(cls, dtype, tmp_path):
    ours = make_ours(cls, dtype, num_hidden_groups=2, inner_group_num=2, **labels_of(cls)).train()
    save_albert(ours, tmp_path / "a" / "ours")
    theirs = read_by_transformers(cls, tmp_path / "a" / "ours")
    assert_equal(theirs.named_parameters(), by_their_names(ours))
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "a" / "ours", str(tmp_path / "theirs")):
        back = load_albert(folder, cls)
        assert_equal(back.named_parameters(), ours.named_parameters())
        assert back.config == ours.config
        assert [module for module in back.modules() if module.training] == []
        assert all(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.parametrize("weights", [SAFETENSORS, PICKLED])
@every_dtype
@every_class
def test_what_transformers_writes_comes_back_through_us_bit_for_bit(cls, dtype, weights, tmp_path):
    theirs = scatter(make_theirs(cls, make_config(num_hidden_groups=3, hidden_act="relu", **labels_of(cls))).to(dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    if weights == PICKLED:
        pickle_weights(tmp_path / "theirs", theirs.state_dict())
    save_albert(load_albert(tmp_path / "theirs", cls), tmp_path / "ours")
    back = read_by_transformers(cls, tmp_path / "ours")
    assert_equal(back.state_dict(), theirs.state_dict())
    passing = ("_name_or_path", "transformers_version")
    before, after = ({k: v for k, v in m.config.to_dict().items() if k not in passing} for m in (theirs, back))
    assert after == before | {"architectures": [cls.__name__], "dtype": after["dtype"]}


@every_class
def test_a_written_folder_has_the_names_of_transformers_and_no_file_beside(cls, tmp_path):
    save_albert(make_ours(cls), tmp_path)
    assert contents(tmp_path).keys() == {"config.json", SAFETENSORS}
    theirs = make_theirs(cls, make_config())
    with safe_open(tmp_path / SAFETENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == dict(theirs.named_parameters()).keys()
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.architectures) == (transformers.AlbertConfig, [cls.__name__])


@pytest.mark.parametrize("file_cls", CLASSES)
@every_class
def test_heads_that_a_class_lacks_are_passed_over_and_those_that_a_file_lacks_are_named(cls, file_cls, tmp_path):
    saved = make_ours(file_cls, torch.float64)
    save_albert(saved, tmp_path)
    held, wanted = hugging_face_tensors(saved), hugging_face_tensors(cls(make_config()))
    if missing := [f"{name} is missing" for name in wanted if name not in held]:
        with pytest.raises(
            ValueError, match=f"{SAFETENSORS} does not fit {cls.__name__}: {re.escape('; '.join(missing))}$"
        ):
            load_albert(tmp_path, cls)
    else:
        loaded = hugging_face_tensors(load_albert(tmp_path, cls))
        assert_equal(loaded, {name: held[name] for name in wanted})


def test_the_default_class_is_the_encoder_with_its_pooler(tmp_path):
    saved = make_ours(AlbertForPreTraining)
    save_albert(saved, tmp_path)
    loaded = load_albert(tmp_path)
    assert type(loaded) is AlbertModel
    assert_equal(loaded.state_dict(), saved.albert.state_dict())


def test_safetensors_go_before_pickled_weights(tmp_path):
    saved = make_ours(AlbertModel)
    save_albert(saved, tmp_path)
    (tmp_path / PICKLED).write_bytes(b"damaged")
    assert_equal(load_albert(tmp_path).state_dict(), saved.state_dict())


@pytest.mark.parametrize("cls", [AlbertForMaskedLM, AlbertForPreTraining])
def test_buffers_and_tied_copies_of_older_files_are_passed_over(cls, tmp_path):
    saved = make_ours(cls)
    save_albert(saved, tmp_path)
    tensors = by_their_names(saved)
    pickle_weights(
        tmp_path,
        **{"predictions.decoder.weight": tensors[WORDS], "predictions.decoder.bias": tensors["predictions.bias"]},
        **{f"albert.embeddings.{name}_ids": torch.arange(9)[None] for name in ("position", "token_type")},
    )
    assert_equal(load_albert(tmp_path, cls).state_dict(), saved.state_dict())


@pytest.mark.parametrize("tied", ["predictions.decoder.weight", "predictions.decoder.bias"])
def test_a_decoder_that_is_not_tied_is_refused(tied, tmp_path):
    saved = make_ours(AlbertForPreTraining)
    save_albert(saved, tmp_path)
    other = {"predictions.decoder.weight": WORDS, "predictions.decoder.bias": "predictions.bias"}[tied]
    change_weights(tmp_path, lambda tensors: tensors.update({tied: tensors[other] + 1e-6}))
    problem = f"{tied} is not {other}, to which it is tied here"
    with pytest.raises(ValueError, match=re.escape(f"does not fit AlbertForPreTraining: {problem}") + "$"):
        load_albert(tmp_path, AlbertForPreTraining)


def test_one_error_lists_all_tensors_that_are_missing_surplus_or_of_another_shape(tmp_path):
    save_albert(make_ours(AlbertForMaskedLM), tmp_path)
    layer = "albert.encoder.albert_layer_groups.{}.albert_layers.0.attention"

    def change(tensors):
        del tensors["predictions.bias"], tensors[f"{layer.format(0)}.key.bias"]
        tensors |= {f"{layer.format(1)}.key.bias": torch.ones(8), "cls.weight": torch.ones(1)}
        tensors |= {WORDS: torch.ones(22, 6), f"{layer.format(0)}.dense.weight": torch.ones(64)}

    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_albert(tmp_path, AlbertForMaskedLM)
    head, _, problems = str(caught.value).partition(": ")
    assert head == f"{tmp_path / SAFETENSORS} does not fit AlbertForMaskedLM"
    assert sorted(problems.replace("; expected", ", expected").split("; ")) == sorted(
        [
            f"{layer.format(0)}.key.bias is missing",
            "predictions.bias is missing",
            f"{layer.format(1)}.key.bias is surplus",
            "cls.weight is surplus",
            f"{WORDS} has shape (22, 6), expected (23, 6)",
            f"{layer.format(0)}.dense.weight has shape (64,), expected (8, 8)",
        ]
    )


def test_a_surplus_tensor_of_a_head_that_the_class_has_is_named(tmp_path):
    save_albert(make_ours(AlbertForMaskedLM), tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.update({"predictions.extra.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"does not fit AlbertForMaskedLM: predictions.extra.weight is surplus$"):
        load_albert(tmp_path, AlbertForMaskedLM)


def test_tensors_of_integers_are_refused(tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    name = "pooler.bias"
    change_weights(tmp_path, lambda tensors: tensors.update({name: tensors[name].long()}))
    with pytest.raises(ValueError, match=f"albert.{name} has dtype torch.int64; expected a floating one$"):
        load_albert(tmp_path)


def test_what_a_config_leaves_out_is_as_transformers_has_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    ours = dataclasses.asdict(_read_config(tmp_path / "config.json"))
    theirs = transformers.AlbertConfig.from_pretrained(tmp_path)
    del ours["sharing"]
    assert ours == {name: getattr(theirs, name) for name in ours}


def test_labels_are_counted_by_their_names(tmp_path):
    config = make_theirs(AlbertForSequenceClassification, make_config()).config
    config.id2label = {0: "bad", 1: "fair", 2: "good"}
    theirs = scatter(transformers.AlbertForSequenceClassification(config).double()).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_albert(tmp_path / "theirs", AlbertForSequenceClassification)
    assert ours.config == make_config(num_labels=3)
    torch.testing.assert_close(ours(IDS, **WHOLE_INPUT), theirs(IDS, **WHOLE_INPUT).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_what_shares_in_part_is_written_as_what_shares_nothing_and_computes_the_same(sharing, inner, tmp_path):
    shape = {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": inner}
    saved = make_ours(AlbertForPreTraining, torch.float64, sharing=sharing, **shape)
    save_albert(saved, tmp_path)
    loaded = load_albert(tmp_path, AlbertForPreTraining)
    assert loaded.config == make_config(**shape | {"num_hidden_groups": 2 if sharing == "all" else 5})
    torch.testing.assert_close(loaded(IDS, **WHOLE_INPUT), saved(IDS, **WHOLE_INPUT), rtol=0, atol=1e-12)


def test_entries_of_older_configs_are_passed_over_and_integers_are_probabilities_too(tmp_path):
    saved = make_ours(AlbertForMaskedLM)
    save_albert(saved, tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    for name in ("id2label", "label2id", "model_type"):
        del entries[name]
    entries |= {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0}
    entries |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "position_embedding_type": "absolute"}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    loaded = load_albert(tmp_path, AlbertForMaskedLM)
    assert loaded.config == saved.config
    assert_equal(loaded.state_dict(), saved.state_dict())


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("weights", [SAFETENSORS, PICKLED])
@pytest.mark.parametrize("kept", [0, 0.02, 0.5, 0.99])
def test_damaged_weights_are_named(weights, kept, tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    if weights == PICKLED:
        pickle_weights(tmp_path)
    whole = (tmp_path / weights).read_bytes()
    (tmp_path / weights).write_bytes(whole[: int(kept * len(whole))])
    message = f"^{re.escape(str(tmp_path / weights))} is damaged, or holds more than tensors \\(.+\\); fetch it again$"
    with pytest.raises(ValueError, match=message):
        load_albert(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"pooler.bias": 1}, {"pooler.bias": [1.0]}], ids=str)
def test_a_file_of_something_else_than_tensors_is_refused(content, tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    (tmp_path / SAFETENSORS).unlink()
    torch.save(content, tmp_path / PICKLED)
    message = f"{tmp_path / PICKLED} holds something else than tensors by their names; fetch it again"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_albert(tmp_path)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    pickle_weights(tmp_path, planted=Planted(tmp_path / "ran"))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / PICKLED} is damaged, or holds more than tensors")):
        load_albert(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / PICKLED, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is not JSON ("),
        ("[1]", "holds no JSON object"),
        ({"model_type": "bert"}, "is of a model of type 'bert' with absolute positions; expected an ALBERT's"),
        (
            {"position_embedding_type": "relative_key"},
            "is of a model of type 'albert' with relative_key positions; expected an ALBERT's",
        ),
        ({"hidden_act": "silu"}, "does not describe an ALBERT (hidden_act='silu'; choose one of "),
        ({"hidden_size": 9}, "does not describe an ALBERT (num_attention_heads=2 does not divide hidden_size=9)"),
        ({"hidden_size": "8"}, "does not describe an ALBERT ("),
        ({"hidden_size": 8.0}, "does not describe an ALBERT (hidden_size=8.0 is no whole number)"),
        ({"id2label": {}}, "does not describe an ALBERT (num_labels=0; choose 1 or more)"),
        ({"id2label": None}, "does not describe an ALBERT ("),
    ],
    ids=str,
)
def test_a_config_that_is_not_an_alberts_is_refused(entries, message, tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    text = json.dumps(whole | entries) if isinstance(entries, dict) else entries
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {message}')}"):
        load_albert(tmp_path)


@pytest.mark.parametrize("left", [[], ["config.json"], [SAFETENSORS]], ids=str)
def test_a_folder_without_config_or_weights_is_named(left, tmp_path):
    save_albert(make_ours(AlbertModel), tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in left:
            path.unlink()
    message = f"{tmp_path} holds no config.json and {SAFETENSORS} or {PICKLED}; name the folder of a checkpoint"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        load_albert(tmp_path)


@pytest.mark.parametrize("before", ["nothing", "a checkpoint"])
def test_weights_that_cannot_be_written_leave_what_was_there(before, tmp_path, monkeypatch):
    if before == "a checkpoint":
        save_albert(make_ours(AlbertModel), tmp_path)
    held = contents(tmp_path)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("companion.albert.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_albert(make_ours(AlbertModel, num_hidden_groups=2), tmp_path)
    assert contents(tmp_path) == held


def test_a_file_is_no_folder_to_save_in(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="exists"):
        save_albert(make_ours(AlbertModel), path)
    assert contents(tmp_path) == {"file": b"mine"}


@every_class
def test_loading_and_saving_draw_no_random_numbers(cls, tmp_path):
    model = make_ours(cls)
    before = torch.get_rng_state()
    save_albert(model, tmp_path)
    load_albert(tmp_path, cls)
    assert torch.equal(torch.get_rng_state(), before)


class Hub:
    """The Hub, as a folder ``owner/name`` of files; what is asked for is recorded."""

    def __init__(self, folder):
        self.folder, self.asked, self.offline = folder, [], ()

    def download(self, repository, name):
        self.asked.append(f"{repository}/{name}")
        if name in self.offline:
            raise LocalEntryNotFoundError("the Hub cannot be reached\nand more")
        if not (self.folder / repository / name).exists():
            raise EntryNotFoundError(name)
        return str(self.folder / repository / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


@pytest.mark.parametrize("repository", ["albert/albert-base-v2", "o_1/n.2-x"])
@pytest.mark.parametrize("weights", [SAFETENSORS, PICKLED])
def test_owner_and_name_are_downloaded_from_the_hub(weights, repository, hub):
    saved = make_ours(AlbertForPreTraining)
    save_albert(saved, hub.folder / repository)
    if weights == PICKLED:
        pickle_weights(hub.folder / repository)
    loaded = load_albert(repository, AlbertForPreTraining)
    assert_equal(loaded.state_dict(), saved.state_dict())
    files = ["config.json", SAFETENSORS] + [PICKLED] * (weights == PICKLED) + ["spiece.model"]
    assert hub.asked == [f"{repository}/{name}" for name in files]


def test_a_repository_without_weights_is_named(hub):
    save_albert(make_ours(AlbertModel), hub.folder / "owner/name")
    (hub.folder / "owner/name" / SAFETENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"^owner/name on the Hub holds no config\.json and model\.safe"):
        load_albert("owner/name")


def test_an_error_of_the_hub_without_a_message_is_named_by_its_kind(monkeypatch):
    def download(repository, name):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"cannot be had from the Hub \(ConnectionError\); "):
        load_albert("owner/name")


@pytest.mark.parametrize("offline", ["config.json", SAFETENSORS, PICKLED])
def test_without_a_connection_the_repository_is_named(offline, hub):
    save_albert(make_ours(AlbertModel), hub.folder / "owner/name")
    pickle_weights(hub.folder / "owner/name")
    hub.offline = (offline,)
    message = (
        "owner/name is no folder here, and cannot be had from the Hub (the Hub cannot be reached); "
        "name a folder, or try again with a connection"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        load_albert("owner/name")
    assert hub.asked[-1] == f"owner/name/{offline}"


def test_a_folder_goes_before_a_repository_of_its_name(hub):
    here, there = make_ours(AlbertModel), make_ours(AlbertModel)
    save_albert(here, "owner/name")
    save_albert(there, hub.folder / "owner/name")
    assert_equal(load_albert("owner/name").state_dict(), here.state_dict())
    assert hub.asked == []


@pytest.mark.parametrize(
    "path", [Path("owner/name"), "name", "owner/name/more", "/owner/name", "owner/", "owner/na me", "file"], ids=repr
)
def test_what_cannot_be_a_repository_is_not_asked_for(path, hub):
    save_albert(make_ours(AlbertModel), hub.folder / "owner/name")
    Path("file").write_text("no folder")
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(path))} .*; name the folder of a checkpoint"):
        load_albert(path)
    assert hub.asked == []
