"""A classifier on ALBERT, against texts read one by one, window by window; and what it is begun with."""

import copy
import itertools
import json
import math
import re
from collections import Counter
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion import toy
from companion.albert import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertModel,
    AlbertTextClassifier,
    AlbertTextConfig,
    save_albert,
)
from companion.batching import labelled_batches, pad_batch
from companion.cooccurrence import cooccurrence_vectors
from companion.losses import classification_loss
from companion.prediction import Predictor, load_run
from companion.pretraining import PreTrainingTask, pretraining_batches, pretraining_loss
from companion.runs import RunFolder, load_weights
from companion.text import SentencePieceTokenizer
from companion.training import TrainingConfig, train
from companion.transfer import load_pretrained, make_classifier, warm_start

pytestmark = pytest.mark.usefixtures("one_thread")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SMALL = {
    **{"vocab_size": 60, "embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 12, "max_position_embeddings": 9},
}
ROOM = 7  # tokens of a window between its special ones
CLOSE = {"rtol": 0.0, "atol": 1e-12}
"""In float64 sums in another order differ by some 1e-15, and values here are of order 1."""


def scattered(model):
    """Make every parameter count: no bias at 0, no scale at 1, no padding vector at 0."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.5)
    return model


def make_model(**changes) -> AlbertTextClassifier:
    return scattered(AlbertTextClassifier(AlbertTextConfig(**SMALL | {"max_length": 40} | changes))).double().eval()


def windows(ids: list[int], config: AlbertTextConfig) -> list[list[int]]:
    """Cut a text into as many windows as it takes, as long as one another but for one token."""
    room = config.max_position_embeddings - 2
    count = max(1, math.ceil(len(ids) / room))
    edges = [math.floor(len(ids) * number / count) for number in range(count + 1)]
    parts = [ids[start:end] for start, end in itertools.pairwise(edges)]
    assert max(map(len, parts)) <= min(room, min(map(len, parts)) + 1)
    return [[config.bos_token_id, *part, config.eos_token_id] for part in parts]


def plain_mean(model: AlbertTextClassifier, ids: list[int]) -> torch.Tensor:
    hidden = [model.albert(torch.tensor([window])).last_hidden_state[0] for window in windows(ids, model.config)]
    return torch.cat(hidden).mean(dim=0)


def plain_logits(model: AlbertTextClassifier, texts: list[list[int]]) -> torch.Tensor:
    return torch.cat([model.output(plain_mean(model, ids)) for ids in texts])


texts = st.lists(st.lists(st.integers(5, 59), max_size=40), min_size=1, max_size=6).filter(any)
property_test = settings(max_examples=40)


@property_test
@given(texts, st.integers(3, 30), st.integers(0, 5))
def test_a_logit_is_that_of_the_mean_over_all_windows_whatever_else_is_in_the_batch(texts, places, padding):
    model = make_model(max_position_embeddings=places)
    ids = F.pad(pad_batch(texts), (0, min(padding, 40 - max(map(len, texts)))))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), plain_logits(model, texts), **CLOSE)


@pytest.mark.parametrize("length", [1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 2 * ROOM + 1, 40])
def test_texts_at_the_edges_of_windows(length):
    """Longer ones than these would not fit, shorter ones have windows of their own: positions begin at 0 in each."""
    model = make_model()
    texts = [torch.randint(5, 60, (length,)).tolist(), [7]]
    torch.testing.assert_close(model(pad_batch(texts)), plain_logits(model, texts), **CLOSE)
    expected = -(-length // ROOM)
    assert len(windows(texts[0], model.config)) == expected
    seen = []
    model.albert.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    model(pad_batch(texts))
    ((ids, mask),) = seen
    rows = [row[row_mask].tolist() for row, row_mask in zip(ids, mask, strict=True)]
    assert rows == [*windows(texts[0], model.config), [2, 7, 3]]


def test_a_short_text_is_one_window_and_the_mean_of_its_vectors_goes_through_the_output():
    model = make_model()
    hidden = model.albert(torch.tensor([[2, 8, 9, 3]])).last_hidden_state[0]
    logit = hidden.mean(dim=0) @ model.output.weight[0] + model.output.bias[0]
    torch.testing.assert_close(model(torch.tensor([[8, 9]])), logit[None], **CLOSE)


def test_special_tokens_and_padding_are_the_configs():
    model = make_model(pad_token_id=5, bos_token_id=11, eos_token_id=0)
    ids = [[7, 8, 9], [12] * 12, [6]]
    assert model.config.pad_id == 5
    torch.testing.assert_close(model(pad_batch(ids, pad_id=5)), plain_logits(model, ids), **CLOSE)


def test_a_text_of_nothing_but_padding_has_the_logit_of_the_special_tokens():
    model = make_model()
    for ids in (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64), pad_batch([[], [9] * 30])):
        logits = model(ids)
        torch.testing.assert_close(logits[:1], plain_logits(model, [[]]), **CLOSE)
        logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_gradient_is_that_of_texts_read_one_by_one_and_reaches_every_parameter():
    model = make_model().train()
    model.dropout.p = 0.0
    texts = [torch.randint(5, 60, (length,)).tolist() for length in (3, 7, 20, 40)]
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    gradients = []
    for logits in (model(pad_batch(texts)), plain_logits(model, texts)):
        model.zero_grad()
        (logits @ weights).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        assert gradient.any(), name
        # Sums of some hundred terms, of order 1 to 100.
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-9, atol=1e-10, msg=name)
    assert all(gradients[0]["albert.embeddings.position.weight"].any(dim=1))


def test_dropout_is_before_the_output_and_in_training_alone():
    model = make_model(classifier_dropout_prob=0.4)
    ids = [9, 8, 7]
    torch.manual_seed(5)
    expected = model.output(F.dropout(plain_mean(model, ids), p=0.4))
    torch.manual_seed(5)
    torch.testing.assert_close(model.train()(torch.tensor([ids])), expected, **CLOSE)
    torch.testing.assert_close(model.eval()(torch.tensor([ids])), plain_logits(model, [ids]), **CLOSE)


def test_word_dropout_hides_tokens_behind_the_mask_in_training_alone():
    """The very tokens, drawn again; padding stays, and evaluation sees all."""
    texts = [torch.randint(5, 60, (n,)).tolist() for n in (40, 11)]
    dropout = {"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    model = make_model(word_dropout=0.4, mask_id=6, **dropout).train()
    torch.manual_seed(5)
    hidden = torch.rand(2, 40) < 0.4
    torch.manual_seed(5)
    masked = [[6 if hidden[row, n] else i for n, i in enumerate(ids)] for row, ids in enumerate(texts)]
    torch.testing.assert_close(model(pad_batch(texts)), plain_logits(model, masked), **CLOSE)
    assert 0.2 < hidden.float().mean() < 0.6
    torch.testing.assert_close(model.eval()(pad_batch(texts)), plain_logits(model, texts), **CLOSE)


def test_the_output_begins_as_the_encoder_does():
    """With weights drawn from a normal distribution cut at two deviations, and no bias."""
    config = AlbertTextConfig(**SMALL | {"hidden_size": 600, "initializer_range": 0.3})
    output = AlbertTextClassifier(config).output
    assert not output.bias.any()
    assert 0.5 < output.weight.abs().max() <= 0.6
    assert output.weight.std().item() == pytest.approx(0.3 * 0.8796, rel=0.15)  # five deviations of 600 numbers' one


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"max_length": n}, f"max_length={n}; choose 1 or more") for n in (0, -1)),
        ({"max_position_embeddings": 2}, "max_position_embeddings=2 has no room for a token between [CLS] and [SEP]"),
        ({"word_dropout": 1.5}, "word_dropout=1.5; choose"),
        ({"mask_id": 60}, "mask_id=60; choose 0 <= mask_id < vocab_size=60"),
        ({"unknown_id": -1}, "unknown_id=-1; choose 0 <= unknown_id < vocab_size=60"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=8"),
    ],
)
def test_a_config_refuses_what_is_out_of_range(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        AlbertTextConfig(**SMALL | changes)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "input_ids has dtype torch.float32; expected torch.int64, token ids"),
        (torch.ones(3).long(), ValueError, "input_ids has shape (3,); expected (batch, length)"),
        (torch.ones(1, 41).long(), ValueError, "input_ids has length 41; expected at most max_length=40"),
        (torch.ones(1, 4, device="meta").long(), ValueError, "input_ids is on meta; expected cpu, the embedding's"),
    ],
)
def test_a_model_refuses_inputs_that_do_not_fit(ids, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        make_model()(ids)


def test_a_warm_start_is_what_counting_gives_and_leaves_the_rest_as_it_was():
    config = AlbertConfig(**SMALL, initializer_range=0.3)
    model = scattered(AlbertForPreTraining(config))
    before = copy.deepcopy(model.state_dict())
    sequences = [torch.randint(5, 50, (length,)).tolist() for length in (30, 1, 200, 60)]
    warm_start(model, sequences)
    found = model.state_dict()
    places, width = range(config.max_position_embeddings), config.embedding_size
    angles = [[place / 10_000 ** (2 * pair / width) for pair in range(width // 2)] for place in places]
    waves = [[wave(angle) for angle in row for wave in (math.sin, math.cos)] for row in angles]
    seen = Counter(itertools.chain(*sequences))
    expected = before | {
        "albert.embeddings.word.weight": 0.3 * cooccurrence_vectors(sequences, 60, width),
        "albert.embeddings.position.weight": 0.3 * math.sqrt(2) * torch.tensor(waves),
        "predictions.bias": torch.tensor([math.log((seen[index] + 1) / (seen.total() + 60)) for index in range(60)]),
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():  # sines and logarithms in float32
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed == {name for name in expected if expected[name] is not before[name]}
    sizes = [found[f"albert.embeddings.{kind}.weight"].square().mean().sqrt().item() for kind in ("word", "position")]
    assert sizes == pytest.approx([0.3 * math.sqrt(len(seen) / 60), 0.3], rel=0.02)  # no vector for what is not there


CONFIG = AlbertConfig(**SMALL, hidden_dropout_prob=0.2, num_labels=3, sharing="attention", pad_token_id=0)


def test_a_classifier_is_made_of_a_copy_of_the_encoder_and_a_fresh_head():
    encoder = scattered(AlbertModel(CONFIG))
    before = copy.deepcopy(encoder.state_dict())
    changes = {"max_length": 30, "hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.3}
    classifier = make_classifier(encoder, **changes)
    assert classifier.config == AlbertTextConfig(**asdict(CONFIG) | changes)
    assert (classifier.albert.embeddings.dropout.p, classifier.dropout.p) == (0.1, 0.3)
    found = classifier.albert.state_dict()
    assert found.keys() == {name for name in before if not name.startswith("pooler.")}
    assert all(torch.equal(found[name], before[name]) for name in found)
    assert classifier.output.weight.abs().max() <= 2 * CONFIG.initializer_range
    ids = torch.tensor([[9, 8, 7]])
    hidden = encoder.eval()(torch.tensor([[2, 9, 8, 7, 3]])).last_hidden_state
    # In float32 the mean over five vectors, of order 1, is summed in another order.
    torch.testing.assert_close(classifier.eval()(ids), classifier.output(hidden.mean(dim=1))[:, 0], rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_classifier_is_as_the_encoder_was_where_nothing_is_changed():
    assert make_classifier(AlbertModel(CONFIG)).config == AlbertTextConfig(**asdict(CONFIG))


@pytest.fixture(scope="module")
def reviews():
    return toy.reviews(120)


@pytest.fixture(scope="module")
def tokenizer(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    return SentencePieceTokenizer.train([review.text for review in reviews], 60, path)


@pytest.fixture(scope="module")
def pretrained_run(reviews, tokenizer, tmp_path_factory):
    """Pre-train for an epoch; return the folder, and the model as it was in memory."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "pretrained")
    model = AlbertForPreTraining(AlbertConfig(**SMALL, num_labels=3, initializer_range=0.3))
    ids = [tokenizer.encode(review.text) for review in reviews]
    task = PreTrainingTask(sentence_task="none")
    batches = pretraining_batches(ids, tokenizer, task, max_length=9, max_tokens=400)
    training = TrainingConfig(epochs=1, learning_rate=0.01, mixed_precision="fp32")
    train(model, batches, training, loss_fn=pretraining_loss, output=run.folder)
    tokenizer.save(run.pieces)
    return run, model


def copied(run: RunFolder, folder) -> RunFolder:
    folder.mkdir()
    for path in (run.config, run.weights, run.pieces):
        (folder / path.name).write_bytes(path.read_bytes())
    return RunFolder(folder)


def assert_same_encoder(found: AlbertModel, expected: AlbertModel) -> None:
    assert found.config == expected.config
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_a_run_of_pretraining_gives_its_encoder_and_its_tokenizer(pretrained_run, tokenizer):
    run, model = pretrained_run
    fresh = AlbertForPreTraining(model.config).state_dict()
    assert not torch.equal(model.albert.embedding_map.weight, fresh["albert.embedding_map.weight"])
    for path in (run.folder, str(run.folder)):
        found = load_pretrained(path)
        assert_same_encoder(found.model, model.albert)
        assert found.tokenizer == tokenizer


@pytest.mark.parametrize("part", ["the encoder", "the encoder with its heads"])
def test_a_checkpoint_of_transformers_gives_the_same(pretrained_run, tokenizer, tmp_path, part):
    run, model = pretrained_run
    save_albert(model.albert if part == "the encoder" else model, tmp_path)
    tokenizer.save(tmp_path / "spiece.model")
    found = load_pretrained(tmp_path)
    assert_same_encoder(found.model, load_pretrained(run.folder).model)
    assert found.tokenizer == tokenizer
    ids = torch.tensor([[2, *tokenizer.encode("The plot")[:6], 3]])
    theirs = transformers.AlbertModel.from_pretrained(tmp_path)(ids).last_hidden_state
    # Float32, through two layers of another order of sums.
    torch.testing.assert_close(found.model(ids).last_hidden_state, theirs, rtol=0, atol=1e-5)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("folder", FileNotFoundError, "{folder} does not exist; name the folder of a checkpoint"),
        ("config.json", FileNotFoundError, "{folder} holds no config.json and model.safetensors or pytorch_model.bin"),
        ("spiece.model", FileNotFoundError, "{folder}/spiece.model does not exist; name a SentencePiece model"),
        (
            "model.safetensors",
            FileNotFoundError,
            "{folder}/model.safetensors does not exist; pretrain albert has not finished an epoch there",
        ),
    ],
)
def test_what_is_missing_is_named(pretrained_run, tmp_path, missing, error, message):
    run = copied(pretrained_run[0], tmp_path / "run")
    if missing == "folder":
        run = RunFolder(tmp_path / "nowhere")
    else:
        (run.folder / missing).unlink()
    with pytest.raises(error, match=f"^{re.escape(message.format(folder=run.folder))}"):
        load_pretrained(run.folder)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"no weights", "{path} is damaged"),
        ("spiece.model", b"no model", "{path} is no SentencePiece model that would do"),
        ("config.json", b"{", "{path} is not JSON"),
        (
            "config.json",
            b'{"model": {"kind": "TextClassifier"}}',
            "{folder} is no run of pretrain albert; name one, or",
        ),
        ("config.json", b'{"model": []}', "{folder} is no run of pretrain albert"),
        (
            "config.json",
            b'{"model": {"kind": "AlbertForPreTraining", "foo": 1}}',
            "{path} does not describe an ALBERT (",
        ),
        (
            "config.json",
            b'{"model": {"kind": "AlbertForPreTraining"}}',
            "{folder}/model.safetensors does not fit {path} (",
        ),
        ("config.json", b'{"model": {}}', "{folder} is no run of pretrain albert; name one, or the folder of a check"),
    ],
)
def test_what_is_damaged_or_of_another_kind_is_named(pretrained_run, tmp_path, name, content, message):
    run = copied(pretrained_run[0], tmp_path / "run")
    (run.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(folder=run.folder, path=run.folder / name))}"):
        load_pretrained(run.folder)


@pytest.mark.unhooked
def test_a_checkpoint_without_an_encoder_of_albert_is_refused(pretrained_run, tokenizer, tmp_path):
    """A masked-language model has no pooler, which a pre-trained encoder has."""
    save_albert(AlbertForMaskedLM(pretrained_run[1].config), tmp_path)
    tokenizer.save(tmp_path / "spiece.model")
    with pytest.raises(ValueError, match=re.escape("does not fit AlbertModel: albert.pooler.weight is missing")):
        load_pretrained(tmp_path)


@pytest.fixture(scope="module")
def fine_tuned(pretrained_run, reviews, tmp_path_factory):
    """Fine-tune for two epochs; return the folder, the model in memory and the tokenizer."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "fine-tuned")
    encoder, tokenizer = load_pretrained(pretrained_run[0].folder)
    model = make_classifier(encoder, max_length=30, hidden_dropout_prob=0.1)
    ids = [tokenizer.encode(review.text)[:30] for review in reviews]
    batches = labelled_batches(ids, [review.label for review in reviews], max_tokens=600)
    training = TrainingConfig(epochs=2, learning_rate=0.01, mixed_precision="fp32")
    train(model, batches, training, loss_fn=classification_loss, output=run.folder)
    tokenizer.save(run.pieces)
    return run, model, tokenizer


def test_a_loaded_run_predicts_what_the_model_in_memory_does(fine_tuned, pretrained_run, reviews):
    run, model, tokenizer = fine_tuned
    assert not torch.equal(model.albert.embedding_map.weight, pretrained_run[1].albert.embedding_map.weight)
    predictor = load_run(run.folder)
    assert predictor.model.config == model.config == AlbertTextConfig(**asdict(model.config))
    texts = [review.text for review in reviews[:40]]
    assert predictor.encode(texts[0]) == tokenizer.encode(texts[0])[:30]
    assert max(len(tokenizer.encode(text)) for text in texts) > 30 > ROOM
    found = predictor.logits(texts)
    assert torch.equal(found, Predictor(model, tokenizer.vocabulary, {}, tokenizer).logits(texts))
    with torch.no_grad():
        expected = plain_logits(model.eval(), [tokenizer.encode(text)[:30] for text in texts])
    # In float32, through two layers: some 1e-7 of vectors of order 1, summed over all tokens of a text.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 16}, "model.safetensors does not fit"),
        ({"colour": "red"}, "config.json does not describe a classifier"),
        ({"max_position_embeddings": 2}, "config.json does not describe a classifier"),
        ({"kind": "AlbertForPreTraining"}, "config.json does not describe a classifier"),
        ({"unknown_id": 3}, "spiece.model does not fit"),
    ],
)
def test_a_run_whose_files_do_not_fit_each_other_is_refused(fine_tuned, tmp_path, change, named):
    run = copied(fine_tuned[0], tmp_path / "run")
    entries = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**entries, "model": entries["model"] | change}))
    with pytest.raises(ValueError, match=re.escape(f"{run.folder}/{named}")):
        load_run(run.folder)


def test_a_run_needs_its_pieces(fine_tuned, tmp_path):
    run = copied(fine_tuned[0], tmp_path / "run")
    run.pieces.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{run.folder}/.* does not exist; name the folder of a trained run$"):
        load_run(run.folder)


def test_the_best_weights_are_those_in_the_folder(fine_tuned):
    run, model, _ = fine_tuned
    saved = load_weights(run.weights)
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
