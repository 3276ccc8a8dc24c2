import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion.batching import LabelledBatch
from companion.configs import ClassifierConfig, Seq2SeqConfig
from companion.models import Seq2SeqTransformer, TextClassifier
from companion.quantization import QuantizedLinear, compare_quantized, quantize_linears, quantize_rows, weight_bytes

SMALL = ClassifierConfig(vocab_size=30, d_model=16, num_heads=2, d_ff=24, num_layers=2, max_length=12)


def quantize_by_hand(row):
    """Quantize a list of floats, number by number."""
    largest = max(abs(value) for value in row)
    scale = largest / 127 if largest else 1.0
    return [round(value / scale) for value in row], scale


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    model = TextClassifier(SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases and normalisations too
    return model.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30, (2, 8, 12), generator=generator)
    ids[:, 3:, 7:] = 0
    return [LabelledBatch(batch, torch.tensor([0.0, 1.0] * 4)) for batch in ids]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_is_rounded_to_multiples_of_its_own_scale(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 50, dtype=dtype) * torch.tensor([1e-4, 1.0, 300.0], dtype=dtype)[:, None]
    quantized, scale = quantize_rows(x)
    assert (quantized.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (2, 3, 1))
    for index in [(i, j) for i in range(2) for j in range(3)]:
        expected, expected_scale = quantize_by_hand(x[index].double().tolist())
        # The quotient is rounded before it is rounded to an integer: no entry of this draw is that close to a half.
        assert quantized[index].tolist() == expected
        assert scale[index].item() == pytest.approx(expected_scale, rel=1e-6)
    error = (x - quantized * scale).abs() / scale
    assert error.max() <= 0.5 + 1e-4  # the quotients, up to 127, have a relative error of 1e-7
    assert error.max() > 0.45
    assert (quantized.abs().amax(dim=-1) == 127).all()


def test_a_row_of_zeros_stays_one():
    quantized, scale = quantize_rows(torch.tensor([[0.0, 0.0], [0.0, -2.0]]))
    assert quantized.tolist() == [[0, 0], [0, -127]]
    assert scale.flatten().tolist() == [1.0, pytest.approx(2 / 127)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_a_quantized_layer_multiplies_whole_numbers_and_scales_the_sums(bias, shape):
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 7, bias=bias), torch.randn(shape)
    weight, offset = linear.weight.tolist(), linear.bias.tolist() if bias else [0.0] * 7
    rows = [quantize_by_hand(row) for row in x.reshape(-1, 5).tolist()]
    expected = []
    for values, x_scale in rows:
        for column, b in zip(weight, offset, strict=True):
            whole, w_scale = quantize_by_hand(column)
            expected.append(sum(p * q for p, q in zip(values, whole, strict=True)) * x_scale * w_scale + b)
    got = QuantizedLinear(linear)(x)
    assert got.dtype == torch.float32
    # Float32 in the scales and the products with them: a few times 1e-7 of numbers below 3.
    torch.testing.assert_close(got, torch.tensor(expected).view(*shape[:-1], 7), rtol=0, atol=1e-5)
    assert not got.requires_grad


def test_the_sum_is_exact_where_float32_would_round():
    linear = nn.Linear(4_001, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(linear.weight)
    x = torch.ones(1, 4_001, dtype=torch.float64)
    x[0, -1] = 1 / 127  # quantized: 4,000 times 127, and 1
    got = QuantizedLinear(linear)(x)
    assert got.item() == pytest.approx(4_000 + 1 / 127, rel=1e-9)


def test_no_output_is_further_off_than_the_rounding_allows():
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32), torch.randn(10, 64)
    (_, x_scale), (_, w_scale) = quantize_rows(x), quantize_rows(linear.weight.detach())
    # |xw - x'w'| <= |x| |w - w'| + |w'| |x - x'|, each rounding at most half a scale; |w'| <= 127 scales.
    bound = x.abs().sum(-1, keepdim=True) * w_scale.T / 2 + x_scale / 2 * (64 * 127 * w_scale.T)
    error = (QuantizedLinear(linear)(x) - linear(x)).abs()
    assert (error <= bound).all()
    assert error.max() > 0


def test_the_weight_is_what_the_whole_numbers_stand_for():
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    layer = QuantizedLinear(linear)
    whole, scales = zip(*(quantize_by_hand(row) for row in linear.weight.tolist()), strict=True)
    expected = torch.tensor([[q * scale for q in row] for row, scale in zip(whole, scales, strict=True)])
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=1e-6)


def test_a_layer_elsewhere_is_refused():
    with pytest.raises(ValueError, match="linear is on meta; move it to the CPU"):
        QuantizedLinear(nn.Linear(2, 2, device="meta"))


def test_a_model_is_copied_with_every_linear_layer_quantized(classifier, batches):
    before = copy.deepcopy(classifier.state_dict())
    quantized = quantize_linears(classifier.train())
    assert not quantized.training
    assert classifier.training
    torch.testing.assert_close(classifier.state_dict(), before, rtol=0, atol=0)
    linears = {name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)}
    assert len(linears) == 2 * 4 + 1
    assert {name for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)} == linears
    assert not any(isinstance(module, nn.Linear) for module in quantized.modules())


def test_a_model_that_is_a_linear_layer_itself_is_quantized():
    assert isinstance(quantize_linears(nn.Linear(2, 2)), QuantizedLinear)


def test_a_quantized_model_computes_what_its_dequantized_weights_and_inputs_do(classifier, batches):
    """The oracle: the same model with rounded weights, whose linear layers round their inputs as well."""
    quantized, rounded = quantize_linears(classifier), copy.deepcopy(classifier)

    def round_input(module, args):
        whole, scale = quantize_rows(args[0])
        return whole * scale

    for module in rounded.modules():
        if isinstance(module, nn.Linear):
            whole, scale = quantize_rows(module.weight.detach())
            module.weight.data = whole * scale
            module.register_forward_pre_hook(round_input)
    for batch in batches:
        expected = rounded(batch.input_ids)
        # A rounding in float32 can carry an input over a half, to the next multiple of its scale: 1 % of a row.
        torch.testing.assert_close(quantized(batch.input_ids), expected, rtol=0, atol=0.05)
        assert (expected - classifier(batch.input_ids)).abs().max() > 1e-3


def test_padding_changes_nothing_after_quantization_either(classifier, batches):
    quantized, ids = quantize_linears(classifier), batches[0].input_ids[3:, :7]
    torch.testing.assert_close(quantized(F.pad(ids, (0, 5))), quantized(ids), rtol=0, atol=0.05)


def test_decoding_with_a_cache_works_on_quantized_layers_too():
    torch.manual_seed(0)
    config = Seq2SeqConfig(source_vocab_size=20, target_vocab_size=20, d_model=16, num_heads=2, d_ff=32, num_layers=1)
    model = Seq2SeqTransformer(config).eval()
    quantized, source = quantize_linears(model), torch.tensor([[5, 6, 7, 8]])
    target = torch.tensor([[2, 9, 10, 11]])
    torch.testing.assert_close(quantized(source, target), model(source, target), rtol=0, atol=0.2)
    ids = quantized.generate(source, max_length=8)
    assert torch.equal(ids, quantized.generate(source, max_length=8, use_cache=False))


def test_bytes_are_counted_by_what_they_are_of(classifier):
    d, d_ff, layers = 16, 24, 2
    weights = layers * (3 * d * d + d * d + 2 * d * d_ff) + d
    outputs = layers * (3 * d + d + d_ff + d) + 1
    norms = layers * 2 * 2 * d
    embedding = 4 * (30 * d + 12 * d)
    assert weight_bytes(classifier) == {
        "linear": 4 * (weights + outputs),
        "embedding": embedding,
        "other": 4 * norms,
    }
    assert weight_bytes(quantize_linears(classifier)) == {
        "linear": weights + 4 * outputs + 4 * outputs,  # int8, a bias and a scale for each output
        "embedding": embedding,
        "other": 4 * norms,
    }
    total = sum(parameter.nbytes for parameter in classifier.parameters())
    assert sum(weight_bytes(classifier).values()) == total


def test_the_two_are_compared_on_the_same_texts(classifier, batches):
    rows = compare_quantized(classifier.train(), batches, repetitions=2)
    assert classifier.training
    assert [row["model"] for row in rows] == ["fp32", "int8"]
    labels = torch.cat([batch.labels for batch in batches])
    with torch.inference_mode():
        models = classifier.eval(), quantize_linears(classifier)
        logits = [torch.cat([model(batch.input_ids) for batch in batches]) for model in models]
    for row, model, values in zip(rows, models, logits, strict=True):
        assert row["bytes"] == weight_bytes(model)
        right = [(value > 0) == (label == 1) for value, label in zip(values.tolist(), labels.tolist(), strict=True)]
        assert row["accuracy"] == sum(right) / 16
        probability = values.double().sigmoid()
        expected = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean().item()
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
        alike = [(a > 0) == (b > 0) for a, b in zip(values.tolist(), logits[0].tolist(), strict=True)]
        assert row["agreement"] == sum(alike) / 16
        assert row["difference"] == pytest.approx((values - logits[0]).abs().mean().item(), rel=1e-5)
        assert row["seconds"] >= 0
    assert rows[1]["difference"] > 0


def test_what_is_measured_is_a_median_of_turns(classifier, batches, monkeypatch):
    times = iter([0.0, 1.0, 0.0, 10.0, 0.0, 2.0, 0.0, 20.0, 0.0, 9.0, 0.0, 90.0])
    monkeypatch.setattr("companion.quantization.time.perf_counter", lambda: next(times))
    assert [row["seconds"] for row in compare_quantized(classifier, batches)] == [2.0, 20.0]


def test_no_gradient_goes_through_a_quantized_layer():
    x = torch.randn(3, 8, requires_grad=True)
    assert not QuantizedLinear(nn.Linear(8, 4))(x).requires_grad


def test_a_layer_that_stands_in_two_places_is_quantized_once_and_counted_once():
    shared = nn.Linear(8, 8)
    model = quantize_linears(nn.Sequential(shared, nn.ReLU(), shared))
    assert model[0] is model[2]
    assert isinstance(model[0], QuantizedLinear)
    assert weight_bytes(nn.Sequential(shared, nn.ReLU(), shared)) == {"linear": 288, "embedding": 0, "other": 0}
    assert weight_bytes(model) == {"linear": 64 + 4 * (8 + 8), "embedding": 0, "other": 0}
