"""What an NVIDIA GPU computes, beside the CPU; `make gpu-check` runs this alone."""

import math
import os
import statistics
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; makes its sums repeatable

import pytest
import torch
from safetensors.torch import load_file

from companion import toy
from companion.attention import MultiHeadAttention, causal_mask, padding_mask
from companion.batching import labelled_batches
from companion.configs import Seq2SeqConfig
from companion.devices import choose_precision, default_device
from companion.layers import Encoder
from companion.losses import classification_loss
from companion.models import ClassifierConfig, Seq2SeqTransformer, TextClassifier
from companion.packing import encode_tokens
from companion.positions import RotaryEmbedding
from companion.text import Vocabulary
from companion.training import TrainingConfig, evaluate, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

ROUNDING = 1e-5
"""Sums of float32 in another order: 64 and more terms of order 1, at 6e-8 of their size each."""


@pytest.fixture
def repeatable():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_the_cpu(need_weights, causal):
    attention = MultiHeadAttention(64, 4).eval()
    x = torch.randn(3, 17, 64)
    mask = padding_mask(torch.ones(3, 17, dtype=torch.long).tril(diagonal=9))
    mask = mask & causal_mask(17) if causal else mask
    expected = attention(x, mask=mask, need_weights=need_weights)
    device = default_device()
    found = attention.to(device)(x.to(device), mask=mask.to(device), need_weights=need_weights)
    torch.testing.assert_close(found.output.cpu(), expected.output, rtol=0, atol=ROUNDING)
    if need_weights:
        torch.testing.assert_close(found.weights.cpu(), expected.weights, rtol=0, atol=ROUNDING)


LENGTHS = [17, 5, 1, 30]


@pytest.mark.parametrize(
    "settings", [{}, {"num_kv_heads": 1}, {"rotary": RotaryEmbedding(16)}, {"head_dim": 12}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sequences_attend_as_each_does_alone(settings, dtype):
    attention = MultiHeadAttention(64, 4, **settings)
    x = torch.randn(1, sum(LENGTHS), 64)
    rounding = ROUNDING if dtype == torch.float32 else 2e-2  # bf16 keeps 8 bits of outputs of order 1
    outputs, gradients = [], []
    for device, number in (("cpu", torch.float32), (default_device(), dtype)):
        attention.to(device, number)
        given = x.to(device, number).requires_grad_()
        if device == "cpu":
            output = torch.cat([attention(part).output for part in given.split(LENGTHS, dim=1)], dim=1)
        else:
            output = attention(given, lengths=LENGTHS).output
        outputs.append(output.detach().cpu().float())
        gradients.append(torch.autograd.grad(output.float().square().mean(), given)[0].cpu().float())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=rounding)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=rounding)


def test_dropout_of_packed_sequences_keeps_the_mean_and_spreads_it_as_its_law_says():
    attention = MultiHeadAttention(64, 4, dropout=0.5, bias=False).to(default_device()).train()
    with torch.no_grad():
        attention.in_proj.weight[:128] = 0.0  # all weights of a sequence are equal
        attention.in_proj.weight[128:] = attention.out_proj.weight[:] = torch.eye(64)
    output = attention(torch.ones(1, 4_000, 64, device=default_device()), lengths=[100] * 40).output
    heads = output.view(4_000, 4, 16)[..., 0]  # each the mean of 100 numbers that are 0 or 2
    assert heads.mean().item() == pytest.approx(1.0, abs=5 * 0.1 / math.sqrt(heads.numel()))
    assert heads.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(("fewest", "masked"), [(1, False), (1, True), (10**9, False)])
def test_large_batches_are_encoded_without_their_padding(monkeypatch, fewest, masked):
    monkeypatch.setattr("companion.packing.FEWEST_ON_GPU", {torch.float32: fewest})
    encoder = Encoder(2, 64, 4, 128)
    x, tokens = torch.randn(4, 30, 64), torch.arange(30) < torch.tensor(LENGTHS)[:, None]
    mask = causal_mask(30) if masked else None
    expected, seen = encode_tokens(encoder, x, tokens, mask), []
    encoder.to(default_device()).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2]))
    found = encode_tokens(encoder, *(y if y is None else y.to(default_device()) for y in (x, tokens, mask)))
    assert seen == [(1, sum(LENGTHS)) if fewest == 1 and not masked else (4, 30)]
    torch.testing.assert_close(found.cpu()[tokens], expected[tokens], rtol=0, atol=ROUNDING)


def test_a_graph_captures_the_padded_batch(monkeypatch):
    monkeypatch.setattr("companion.packing.FEWEST_ON_GPU", {torch.float32: 1})
    encoder = Encoder(1, 64, 4, 128).to(default_device()).eval()
    x = torch.randn(4, 30, 64, device=default_device())
    tokens = (torch.arange(30) < torch.tensor(LENGTHS)[:, None]).to(default_device())
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        expected = encode_tokens(encoder, x, tokens)
        with torch.cuda.graph(graph):
            found = encode_tokens(encoder, x, tokens)
        graph.replay()
    torch.testing.assert_close(found[tokens], expected[tokens], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("length", [1_023, 1_024])
def test_long_sequences_attend_as_short_ones_do(length):
    query, key, value = (torch.randn(1, 4, length, 64, device=default_device(), requires_grad=True) for _ in range(3))
    attention = MultiHeadAttention(256, 4)
    found, expected = [], []
    for dtype, results in ((torch.bfloat16, found), (torch.float64, expected)):
        output = attention._attend(*(x.to(dtype) for x in (query, key, value)), None, None)
        results += [output, *torch.autograd.grad(output.sum(), (query, key, value))]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=2e-2, atol=2e-2)  # bf16 keeps 8 bits


def test_a_new_shape_costs_no_more_than_a_known_one():
    attention = MultiHeadAttention(256, 4).to(default_device(), torch.bfloat16)

    def seconds(length: int) -> float:
        x = torch.randn(8_192 // length, length, 256, device=default_device(), dtype=torch.bfloat16)
        mask = torch.ones(len(x), 1, 1, length, dtype=torch.bool, device=x.device)
        torch.cuda.synchronize()
        start = time.perf_counter()
        attention(x, mask=mask).output.sum().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    lengths = range(100, 240, 7)
    seconds(lengths[0] - 1)  # the first call of all loads the kernels
    new, known = ([seconds(length) for length in lengths] for _ in range(2))
    assert statistics.median(new) < 5 * statistics.median(
        known
    )  # on an H100, cuDNN's plans took some 300 times as long


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
def test_attention_compiles_as_one_graph():
    attention = MultiHeadAttention(64, 4).to(default_device())
    x = torch.randn(3, 17, 64, device=default_device())
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x).output, attention(x).output, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi"])
def test_a_classifier_s_logits_and_gradients_are_those_of_the_cpu(positions):
    config = ClassifierConfig(vocab_size=50, d_model=64, num_heads=4, d_ff=128, max_length=32, positions=positions)
    model = TextClassifier(config).eval()
    ids = torch.randint(1, 50, (5, 23))
    ids[2, 11:] = 0
    found = []
    for device in (torch.device("cpu"), default_device()):
        model.to(device).zero_grad()
        logits = model(ids.to(device))
        logits.square().sum().backward()
        gradients = {name: parameter.grad.cpu().clone() for name, parameter in model.named_parameters()}
        found.append({"logits": logits.detach().cpu(), **gradients})
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=ROUNDING)


def test_a_translation_s_logits_and_words_are_those_of_the_cpu():
    config = Seq2SeqConfig(
        source_vocab_size=20, target_vocab_size=20, d_model=32, num_heads=4, d_ff=64, num_layers=2, dropout=0.0
    )
    model = Seq2SeqTransformer(config).eval()
    source, target = torch.randint(4, 20, (4, 9)), torch.randint(4, 20, (4, 7))
    expected, words = model(source, target), model.generate(source, max_length=12)
    device = default_device()
    model.to(device)
    found = model(source.to(device), target.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert torch.equal(model.generate(source.to(device), max_length=12).cpu(), words)


def corpus(number: int = 2_000):
    texts, labels = zip(*toy.reviews(number), strict=True)
    vocabulary = Vocabulary.build(text.split() for text in texts)
    ids = [vocabulary.encode(text.split()) for text in texts]
    cut = number * 4 // 5
    batches = labelled_batches(ids[:cut], labels[:cut], max_tokens=1_024, seed=1)
    dev = labelled_batches(ids[cut:], labels[cut:], max_tokens=4_096, shuffle=False)
    return len(vocabulary), batches, dev


def classifier(vocab_size: int, width: int = 64, dropout: float = 0.1) -> TextClassifier:
    torch.manual_seed(0)
    shape = {"d_model": width, "num_heads": 4, "d_ff": 2 * width, "num_layers": 2, "max_length": 64}
    config = ClassifierConfig(vocab_size=vocab_size, **shape, dropout=dropout, embedding_dropout=dropout)
    return TextClassifier(config)


def plain_losses(model: TextClassifier, batches, config: TrainingConfig) -> list[float]:
    """Train on the CPU as `train` says it does, without it; return the loss of each batch."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}])
    batches.batch_sampler.set_epoch(0)
    losses, total = [], len(batches)
    for number, batch in enumerate(batches, start=1):
        loss = classification_loss(model, batch)
        optimizer.zero_grad()
        (loss.loss_sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        progress = number / total
        factor = progress / 0.1 if progress < 0.1 else (1 - progress) / 0.9
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        optimizer.step()
        losses.append(loss.loss_sum.item() / loss.count)
    return losses


def test_training_follows_the_cpu_s_losses():
    vocab_size, batches, _ = corpus(800)
    config = TrainingConfig(epochs=1, learning_rate=1e-3, mixed_precision="fp32")
    expected = plain_losses(classifier(vocab_size, dropout=0.0), batches, config)
    found = []

    def loss_fn(model, batch):
        loss = classification_loss(model, batch)
        found.append(loss.loss_sum.item() / loss.count)
        devices.update(parameter.device.type for parameter in model.parameters())
        return loss

    model, devices = classifier(vocab_size, dropout=0.0), set()
    record = train(model, batches, config, loss_fn=loss_fn)
    assert record.hardware["device"] == torch.cuda.get_device_name()
    assert devices == {"cuda"}
    assert found == pytest.approx(expected, abs=1e-3)  # each update passes the rounding of all before it on


class Stop(Exception):
    pass


@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_model_comes_back_to_the_device_that_it_came_on(home):
    vocab_size, batches, dev = corpus(100)
    model = classifier(vocab_size).to(home)
    homes = {parameter: parameter.device for parameter in model.parameters()}

    def stopping(model, batch):
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
        raise Stop

    train(model, batches, TrainingConfig(epochs=1), loss_fn=classification_loss, eval_batches=dev)
    assert {parameter: parameter.device for parameter in model.parameters()} == homes
    evaluate(model, dev, loss_fn=classification_loss)
    assert {parameter: parameter.device for parameter in model.parameters()} == homes
    with pytest.raises(Stop):
        train(model, batches, TrainingConfig(epochs=1), loss_fn=stopping)
    assert {parameter: parameter.device for parameter in model.parameters()} == homes
    model(next(iter(dev)).input_ids.to(home))


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(tmp_path, precision):
    vocab_size, batches, dev = corpus(800)
    config = TrainingConfig(epochs=2, learning_rate=1e-3, mixed_precision=precision)
    settings = {"eval_batches": dev, "checkpoint_every": 3}
    expected_model = classifier(vocab_size)
    expected = train(
        expected_model, batches, config, loss_fn=classification_loss, output=tmp_path / "whole", **settings
    )
    calls = []

    def stopping(model, batch):
        calls.append(model.training)
        if calls.count(True) == len(batches) + 5:
            raise Stop
        return classification_loss(model, batch)

    with pytest.raises(Stop):
        train(classifier(vocab_size), batches, config, loss_fn=stopping, output=tmp_path / "run", **settings)
    model = classifier(vocab_size)
    settings |= {"output": tmp_path / "run", "resume": True}
    record = train(model, batches, config, loss_fn=classification_loss, **settings)
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    for entry, other in zip(record.history, expected.history, strict=True):
        assert {**entry, "seconds": 0} == {**other, "seconds": 0}


def test_bf16_learns_as_well_as_fp32_and_is_what_a_wide_model_gets():
    vocab_size, batches, dev = corpus()
    accuracy = {}
    for precision in ("fp32", "bf16"):
        model, types = classifier(vocab_size, width=256), set()
        model.output.register_forward_hook(lambda module, args, output, types=types: types.add(output.dtype))
        config = TrainingConfig(epochs=6, learning_rate=5e-4, mixed_precision=precision)
        record = train(model, batches, config, loss_fn=classification_loss, eval_batches=dev)
        accuracy[precision] = record.dev["accuracy"]
        assert (torch.bfloat16 in types) == (precision == "bf16")
        assert evaluate(model, dev, loss_fn=classification_loss)["accuracy"] == pytest.approx(
            accuracy[precision], abs=0.01
        )
    assert accuracy["fp32"] > 0.8
    assert accuracy["bf16"] == pytest.approx(accuracy["fp32"], abs=0.05)  # of 400 dev reviews, 20
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_precision(classifier(vocab_size, width=256)) == ("bf16" if native else "fp32")
    assert choose_precision(classifier(vocab_size, width=64)) == "fp32"
