import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from companion import toy
from companion.batching import labelled_batches
from companion.losses import classification_loss
from companion.models import ClassifierConfig, TextClassifier
from companion.prediction import Prediction, Predictor, load_run
from companion.records import write_json
from companion.runs import RunFolder, load_weights, save_weights
from companion.text import SentencePieceTokenizer, Vocabulary
from companion.training import TrainingConfig, train

VOCABULARY = Vocabulary(["<pad>", "<unk>", "good", "bad", "film", "not", "."])
CONFIG = ClassifierConfig(
    vocab_size=len(VOCABULARY), d_model=8, num_heads=2, d_ff=8, max_length=6, dropout=0.5, embedding_dropout=0.5
)
IDS = {
    "good film .": [2, 4, 6],
    "Not good, Film!": [5, 2, 1, 4, 1],
    "bad": [3],
    "an unheard-of thing": [1, 1, 1],
    "not not not not not not good": [5] * 6,
}


@pytest.fixture
def model():
    """Return a classifier with logits on both sides of 0."""
    torch.manual_seed(4)
    model = TextClassifier(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.fixture
def run(model, tmp_path):
    """Return the folder of a finished run."""
    run = RunFolder(tmp_path / "run")
    run.folder.mkdir()
    write_json(
        run.config, {"model": {"kind": "TextClassifier", **asdict(CONFIG)}, "training": {}, "data": {"corpus": "made"}}
    )
    save_weights(model.state_dict(), run.weights)
    VOCABULARY.save(run.vocabulary)
    return run


def test_a_prediction_is_the_label_of_the_logit_and_the_probability_of_that_label(run, model):
    model.eval()
    found = load_run(run.folder).predict(list(IDS))
    for ids, prediction in zip(IDS.values(), found, strict=True):
        positive = model(torch.tensor([ids])).sigmoid().item()
        assert prediction.label == ("positive" if positive > 0.5 else "negative")
        assert prediction.probability == pytest.approx(max(positive, 1 - positive), abs=1e-6)
    assert {prediction.label for prediction in found} == {"positive", "negative"}


def test_predictions_come_in_the_order_of_the_texts(run):
    predictor = load_run(run.folder)
    texts = [*IDS, *reversed(IDS)] * 900  # more tokens than a batch holds
    alone = {text: predictor.predict([text])[0] for text in IDS}
    for text, prediction in zip(texts, predictor.predict(texts), strict=True):
        assert prediction.label == alone[text].label
        assert prediction.probability == pytest.approx(alone[text].probability, abs=1e-6)


def test_what_is_past_the_longest_input_is_not_read(run):
    predictor = load_run(run.folder)
    assert predictor.encode("good film . bad bad bad not not") == [2, 4, 6, 3, 3, 3]
    whole, cut = predictor.predict(["good film . bad bad bad", "good film . bad bad bad not not"])
    assert whole == cut


def test_nothing_to_predict_is_no_prediction(run):
    assert load_run(run.folder).predict([]) == []


@pytest.mark.parametrize("text", ["", " \n\t", "<br />"])
def test_a_text_without_words_is_named_by_its_number(run, text):
    with pytest.raises(ValueError, match=re.escape(f"text 2 holds no words: {text!r}")):
        load_run(run.folder).predict(["good", text])


def test_a_single_string_is_refused(run):
    with pytest.raises(TypeError, match="give a list of texts"):
        load_run(run.folder).predict("good film")


def test_a_run_comes_back_as_it_was_trained(tmp_path, model):
    sequences, labels = zip(([2, 4], 1), ([3, 4], 0), ([5, 2], 0), ([5, 3], 1), strict=True)
    output = tmp_path / "run"
    VOCABULARY.save(_made(output) / "vocabulary.txt")
    batches = labelled_batches(sequences, labels, max_tokens=8)
    config = TrainingConfig(epochs=2, learning_rate=0.1)
    train(model, batches, config, loss_fn=classification_loss, output=output, data={"corpus": "made"})
    predictor = load_run(output)
    assert predictor.model.config == CONFIG
    assert predictor.vocabulary == VOCABULARY
    assert predictor.config == json.loads((output / "config.json").read_text())
    for name, tensor in model.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], tensor)
    assert predictor.predict(["good film"]) == Predictor(model, VOCABULARY, {}).predict(["good film"])


@pytest.fixture
def pieces(tmp_path):
    texts = [review.text for review in toy.reviews(300)]
    return SentencePieceTokenizer.train(texts, 60, tmp_path / "of 60.model")


def test_a_run_of_pieces_comes_back_with_its_tokenizer(run, pieces):
    torch.manual_seed(4)
    model = TextClassifier(replace(CONFIG, vocab_size=60))
    write_json(run.config, {"model": asdict(model.config)})
    save_weights(model.state_dict(), run.weights)
    run.vocabulary.unlink()
    pieces.save(run.pieces)
    predictor = load_run(run.folder)
    assert predictor.tokenizer == pieces
    assert predictor.vocabulary == pieces.vocabulary
    for text in ("The plot was good.", "déjà vu"):
        assert predictor.encode(text) == pieces.encode(text)[:6]
        positive = model.eval()(torch.tensor([pieces.encode(text)[:6]])).sigmoid().item()
        (found,) = predictor.predict([text])
        assert found.probability == pytest.approx(max(positive, 1 - positive), abs=1e-6)


def test_pieces_of_another_size_are_named(run, pieces):
    run.vocabulary.unlink()
    pieces.save(run.pieces)
    with pytest.raises(ValueError, match=re.escape(f"{run.pieces} does not fit {run.config}") + ".*expected 60, 0, 1"):
        load_run(run.folder)


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "vocabulary.txt"])
def test_what_is_missing_is_named(run, name):
    path = run.folder / name
    path.unlink() if name else shutil.rmtree(run.folder)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path} does not exist; name the folder of a trained run")):
        load_run(run.folder)


def without(entries, name):
    return {key: value for key, value in entries.items() if key != name}


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({}, "KeyError: 'model'"),
        ({"model": {"kind": []}}, "TypeError"),
        ({"model": {**asdict(CONFIG), "colour": 3}}, "colour"),
        ({"model": {"kind": "Perceptron", **asdict(CONFIG)}}, "Perceptron"),
        ({"model": {**asdict(CONFIG), "d_model": 0}}, "d_model=0; choose 1 or more"),
    ],
)
def test_a_config_that_describes_no_classifier_is_named(run, entries, reason):
    write_json(run.config, entries)
    with pytest.raises(ValueError, match=re.escape(f"{run.config} does not describe a classifier (") + f".*{reason}"):
        load_run(run.folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: without(weights, "output.bias"), "output.bias"),
        (lambda weights: {**weights, "another": torch.ones(1)}, "another"),
        (lambda weights: {**weights, "output.bias": torch.ones(2)}, "output.bias"),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_weights_of_another_model_are_named(run, change, reason):
    save_weights(change(load_weights(run.weights)), run.weights)
    with pytest.raises(ValueError, match=re.escape(f"{run.weights} does not fit {run.config}") + f".*{reason}"):
        load_run(run.folder)


def test_damaged_weights_are_named(run):
    run.weights.write_bytes(run.weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=re.escape(f"{run.weights} is damaged")):
        load_run(run.folder)


def test_a_vocabulary_of_another_size_is_named(run):
    Vocabulary(["<pad>", "<unk>", "good"]).save(run.vocabulary)
    with pytest.raises(
        ValueError, match=re.escape(f"{run.vocabulary} does not fit {run.config}") + ".*expected 3, 0, 1"
    ):
        load_run(run.folder)


@pytest.mark.parametrize("ids", [{"pad_id": 2}, {"unknown_id": 2}, {"pad_id": 1, "unknown_id": 0}])
def test_other_ids_than_the_vocabularys_are_refused(ids):
    config = ClassifierConfig(**{**asdict(CONFIG), **ids})
    with pytest.raises(ValueError, match="expected 7, 0, 1, as the vocabulary has"):
        Predictor(TextClassifier(config), VOCABULARY, {})


def test_a_prediction_is_a_pair():
    assert Prediction("positive", 0.75) == ("positive", 0.75)
