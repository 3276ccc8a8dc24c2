import inspect
import itertools
import math
import re
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.naive_bayes import MultinomialNB
from torch import nn

from companion import exercises
from companion.albert import AlbertConfig, AlbertModel
from companion.attention import AttentionOutput
from companion.exercises import (
    check_albert_parameters,
    check_alibi,
    check_attention,
    check_best_span,
    check_calibration_error,
    check_causal_mask,
    check_deletion,
    check_feed_forward,
    check_layer_norm,
    check_learning_rate,
    check_linear_attention,
    check_log_count_ratio,
    check_masked_loss,
    check_masked_softmax,
    check_mean_loss,
    check_mean_pooling,
    check_multi_head_attention,
    check_multiply_adds,
    check_ngram_lengths,
    check_pack,
    check_padding_mask,
    check_parameter_count,
    check_patches,
    check_permutation_gap,
    check_positions,
    check_post_norm,
    check_quantize,
    check_ratio,
    check_recurrence,
    check_rotary,
    check_sentence_order,
    check_shift_matrix,
    check_softmax,
    check_softmax_gradient,
    check_split_heads,
    check_teacher_forcing,
    check_token_f1,
    comparison,
)

CHECKS = [value for name, value in vars(exercises).items() if name.startswith("check_")]

# Background: attempts, right by default and wrong by their keywords


def softmax(scores, dim=-1, maximum=lambda scores: scores.amax(-1, keepdim=True)):
    exponentials = torch.exp(scores - maximum(scores))
    return exponentials / exponentials.sum(dim, keepdim=True)


def softmax_in_place(scores):
    scores -= scores.amax(-1, keepdim=True)
    scores.exp_()
    scores /= scores.sum(-1, keepdim=True)
    return scores


def recurrence(x, w_x, w_h, bias, step=lambda inputs, carried: (inputs + carried).tanh(), order=1, back=1):
    h, states = torch.zeros(w_h.size(0)), []
    for x_t in list(x)[::order]:
        h = step(x_t @ w_x + bias, h @ w_h)
        states.append(h)
    return torch.stack(states[::back])


def recurrence_by_torch(x, w_x, w_h, bias):
    rnn = nn.RNN(*w_x.shape, dtype=x.dtype)
    rnn.load_state_dict(
        {"weight_ih_l0": w_x.T, "weight_hh_l0": w_h.T, "bias_ih_l0": bias, "bias_hh_l0": torch.zeros_like(bias)}
    )
    return rnn(x)[0]


def recurrence_with_zero_state(x, w_x, w_h, bias):
    return F.pad(recurrence(x, w_x, w_h, bias), (0, 0, 1, 0))


def split_heads(x, num_heads):
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)


def mean_pooling(x, mask):
    return torch.stack([text[kept].mean(0) for text, kept in zip(x, mask, strict=True)])


def masked_sum(x, mask):
    return torch.einsum("bnd,bn->bd", x, mask.to(x.dtype))


def mean_pooling_in_place(x, mask):
    x *= mask[..., None]
    return x.sum(1) / mask.sum(1, keepdim=True)


# Attention


def attention(query, key, value, mask=None, scale=None, dim=-1, fill=-math.inf, nowhere=0.0, mend=None):
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale(query, key)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if mask is None:
        weights = scores.softmax(dim)
    elif mend is not None:
        weights = mend(scores, mask)
    else:
        weights = scores.masked_fill(~mask, fill).softmax(dim)
        weights = weights if nowhere is None else weights.nan_to_num(nan=nowhere)
    return weights @ value, weights


def attention_by_torch(query, key, value, mask=None):
    output = F.scaled_dot_product_attention(query, key, value, mask)
    # Rows of the weights are the outputs for the unit vectors as values.
    unit = torch.eye(key.size(-2), dtype=key.dtype).expand(*key.shape[:-1], -1)
    return [output, F.scaled_dot_product_attention(query, key, unit, mask)]


def attention_in_place(query, key, value, mask=None):
    query /= query.size(-1) ** 0.5
    weights = query @ key.mT
    if mask is not None:
        weights.masked_fill_(mask.logical_not_(), -math.inf)
        weights = weights.softmax(-1).masked_fill(mask, 0)
    else:
        weights = weights.softmax(-1)
    return AttentionOutput(weights @ value.mul_(1), weights)


def scores_as_weights(query, key, value, mask=None, scale=1.0):
    return attention(query, key, value, mask)[0], query @ key.mT * scale


def softmax_missing(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    return scores @ value, scores


def keys_mixed(query, key, value, mask=None):
    weights = attention(query, key, value, mask)[1]
    return weights @ key, weights


def nan_left_in_the_weights(query, key, value, mask=None):
    output, weights = attention(query, key, value, mask, nowhere=None)
    return output.nan_to_num(0), weights


def causal(length, sees=lambda query, key: key <= query):
    return torch.tensor([[sees(query, key) for key in range(length)] for query in range(length)])


def padding(input_ids, pad_id=0):
    batch, length = input_ids.shape
    return (input_ids != pad_id).reshape(batch, 1, 1, length)


def padding_for_every_query(input_ids, pad_id=0):
    return padding(input_ids, pad_id).expand(-1, -1, input_ids.size(1), -1)


def multi_head(x, w_q, w_k, w_v, w_o, num_heads, split=None, join=None, scale=None):
    b, n, d = x.shape
    split = split or (lambda x: x.reshape(b, n, num_heads, d // num_heads).permute(0, 2, 1, 3))
    join = join or (lambda heads: torch.cat(list(heads.unbind(1)), dim=-1))
    q, k, v = split(x @ w_q), split(x @ w_k), split(x @ w_v)
    weights = (q @ k.mT * (scale or (d // num_heads) ** -0.5)).softmax(-1)
    return join(weights @ v) @ w_o


def multi_head_by_torch(x, w_q, w_k, w_v, w_o, num_heads):
    module = nn.MultiheadAttention(x.size(-1), num_heads, bias=False, batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat((w_q, w_k, w_v), dim=1).T)
        module.out_proj.weight.copy_(w_o.T)
    return module(x, x, x)[0]


def heads_by_view(x, w_q, w_k, w_v, w_o, num_heads, **others):
    return multi_head(
        x, w_q, w_k, w_v, w_o, num_heads, split=lambda x: x.view(x.size(0), num_heads, x.size(1), -1), **others
    )


def heads_joined_by_reshape(x, *weights, split=multi_head):
    return split(x, *weights, join=lambda heads: heads.reshape(x.shape))


def softmax_gradient(weights, upstream):
    jacobian = torch.diag_embed(weights) - weights[..., :, None] * weights[..., None, :]
    return torch.einsum("...ij,...j->...i", jacobian, upstream)


def softmax_gradient_by_autograd(weights, upstream):
    scores = weights.log().requires_grad_()
    return torch.autograd.grad(scores.softmax(-1), scores, upstream)[0]


# Positions


def positions(
    length, d_model, pair=lambda j: j // 2, first=0, even=math.sin, odd=math.cos, sign=-1, dtype=torch.float64
):
    rows = []
    for position in range(first, first + length):
        angles = [position * 10_000 ** (sign * 2 * pair(j) / d_model) for j in range(d_model)]
        rows.append([(odd if j % 2 else even)(angle) for j, angle in enumerate(angles)])
    return torch.tensor(rows, dtype=dtype)


def positions_in_float32(length, d_model):
    table = torch.zeros(length, d_model)
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
    table[:, 0::2] = torch.sin(torch.arange(length)[:, None] * frequency)
    table[:, 1::2] = torch.cos(torch.arange(length)[:, None] * frequency)
    return table


def positions_in_halves(length, d_model):
    table = positions(length, d_model)
    return torch.cat((table[:, ::2], table[:, 1::2]), dim=1)


def shift_matrix(k, d_model, frequency=lambda i, d_model: 10_000 ** (-2 * i / d_model), dtype=torch.float64):
    matrix = torch.zeros(d_model, d_model, dtype=dtype)
    for i in range(d_model // 2):
        angle = k * frequency(i, d_model)
        matrix[2 * i, 2 * i] = matrix[2 * i + 1, 2 * i + 1] = math.cos(angle)
        matrix[2 * i, 2 * i + 1], matrix[2 * i + 1, 2 * i] = math.sin(angle), -math.sin(angle)
    return matrix


def shift_matrix_by_least_squares(k, d_model):
    table = positions(1000 + k, d_model)
    return torch.linalg.lstsq(table[:1000], table[k:]).solution.T


def shift_matrix_in_halves(k, d_model):
    angle = torch.tensor([k * 10_000 ** (-2 * i / d_model) for i in range(d_model // 2)], dtype=torch.float64)
    cosine, sine = angle.cos().diag(), angle.sin().diag()
    return torch.cat((torch.cat((cosine, sine), dim=1), torch.cat((-sine, cosine), dim=1)))


def rotary(x, offset=0, base=10_000.0, sign=1, dtype=torch.float64):
    """Multiply complex numbers, one for each pair."""
    length, head_dim = x.shape[-2:]
    frequency = sign * base ** (-torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle = torch.arange(offset, offset + length)[:, None] * frequency
    pairs = torch.view_as_complex(x.to(dtype).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def rotary_in_place(x, offset=0):
    angle = torch.arange(offset, offset + x.size(-2))[:, None] * 10_000 ** (
        -torch.arange(0, x.size(-1), 2) / x.size(-1)
    )
    first, second = x[..., ::2].clone(), x[..., 1::2].clone()
    x[..., ::2] = first * angle.cos() - second * angle.sin()
    x[..., 1::2] = first * angle.sin() + second * angle.cos()
    return x


def rotary_in_halves(x, offset=0):
    half = x.size(-1) // 2
    angle = torch.arange(offset, offset + x.size(-2))[:, None] * 10_000 ** (-torch.arange(half) / half)
    cosine, sine = (torch.cat((part, part), dim=-1) for part in (angle.cos(), angle.sin()))
    return x * cosine + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sine


def alibi(num_heads, length, slope=lambda h, n: 2 ** (-8 * h / n), distance=lambda query, key: -abs(query - key)):
    return torch.tensor(
        [
            [[slope(h, num_heads) * distance(query, key) for key in range(length)] for query in range(length)]
            for h in range(1, num_heads + 1)
        ]
    )


# Layers


def layer_norm(x, gain, bias, eps=1e-5, dim=-1, correction=0, root=lambda variance, eps: (variance + eps) ** 0.5):
    mean = x.mean(dim, keepdim=True)
    variance = ((x - mean) ** 2).sum(dim, keepdim=True) / (count(x, dim) - correction)
    return (x - mean) / root(variance, eps) * gain + bias


def count(x, dim):
    return math.prod(x.size(d) for d in ((dim,) if isinstance(dim, int) else dim))


def layer_norm_in_place(x, gain, bias, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    x /= (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x.mul_(gain).add_(bias)


def feed_forward(x, w_1, b_1, w_2, b_2):
    return F.linear(F.linear(x, w_1.T, b_1).clamp(min=0), w_2.T, b_2)


def post_norm_in_place(x, sublayer, norm):
    x += sublayer(x)
    return norm(x)


def encoder_layer_parameters(d_model, d_ff):
    layer = nn.TransformerEncoderLayer(d_model, nhead=1, dim_feedforward=d_ff)
    return sum(parameter.numel() for parameter in layer.parameters())


def learning_rate(step, d_model, warmup):
    if step < warmup:
        return step / (d_model**0.5 * warmup**1.5)
    return 1 / math.sqrt(d_model * step)


# IMDB


def log_count_ratio(positive, negative, alpha=1.0, in_sum=None, texts=None, after=0.0, log=math.log):
    in_sum = alpha if in_sum is None else in_sum
    total_p, total_q = (texts or sum(count + in_sum for count in counts.tolist()) for counts in (positive, negative))
    pairs = zip(positive.tolist(), negative.tolist(), strict=True)
    return torch.tensor([log(((p + alpha) / total_p + after) / ((q + alpha) / total_q + after)) for p, q in pairs])


def log_count_ratio_by_sklearn(positive, negative, alpha=1.0):
    bayes = MultinomialNB(alpha=alpha).fit(torch.stack((negative, positive)).numpy(), [0, 1])
    return torch.from_numpy(bayes.feature_log_prob_[1] - bayes.feature_log_prob_[0])


def log_count_ratio_in_place(positive, negative, alpha=1.0):
    positive += alpha
    negative += alpha
    return (positive / positive.sum()).log_() - (negative / negative.sum()).log_()


def unsmoothed(positive, negative, alpha=1.0, after=0.0):
    return torch.log((positive / positive.sum() + after) / (negative / negative.sum() + after))


def mean_loss(parts):
    loss_sums, counts = zip(*parts, strict=True)
    return math.fsum(loss_sums) / sum(counts)


def mean_loss_by_example(parts):
    return torch.cat([torch.full((count,), loss_sum / count) for loss_sum, count in parts]).mean()


def mean_loss_in_place(parts):
    total, number = parts.pop()
    while parts:
        loss_sum, count = parts.pop()
        total, number = total + loss_sum, number + count
    return total / number


def calibration_error(
    probabilities,
    labels,
    num_bins=10,
    holds=lambda p, low, high: (low <= p) & ((p < high) | (high == 1)),
    gap=lambda p, y, low, high: abs(y.mean() - p.mean()),
    empty=0.0,
    total=lambda gaps, shares: (gaps * shares).sum().item(),
):
    gaps, shares = torch.full((num_bins,), empty), torch.zeros(num_bins)
    for i in range(num_bins):
        low, high = i / num_bins, (i + 1) / num_bins
        inside = holds(probabilities, low, high)
        shares[i] = inside.sum() / len(labels)
        if inside.any():
            gaps[i] = gap(probabilities[inside], labels[inside], low, high)
    return total(gaps, shares)


def calibration_error_by_histogram(probabilities, labels, num_bins=10):
    positives, expected = (
        np.histogram(probabilities, num_bins, (0, 1), weights=values)[0] for values in (labels, probabilities)
    )
    return np.abs(positives - expected).sum() / len(labels)


def calibration_error_by_index(
    probabilities, labels, num_bins=10, index=lambda p, num_bins: (p * num_bins).long().clamp(max=num_bins - 1)
):
    bins = index(probabilities, num_bins)
    return (bins.bincount(labels) - bins.bincount(probabilities)).abs().sum() / len(labels)


def index_by_edges(probabilities, num_bins):
    return torch.bucketize(probabilities, torch.linspace(0, 1, num_bins + 1))


def calibration_error_of_the_predicted_label(probabilities, labels, num_bins=10):
    correct = ((probabilities > 0.5) == labels).float()
    return calibration_error(torch.where(probabilities > 0.5, probabilities, 1 - probabilities), correct, num_bins)


def deletion(model, input_ids, without=lambda ids, i: torch.cat((ids[:i], ids[i + 1 :])), of=lambda logit: logit):
    whole = of(model(input_ids[None]))
    return torch.cat([whole - of(model(without(input_ids, i)[None])) for i in range(len(input_ids))])


def deletion_in_one_batch(model, input_ids):
    whole, *others = model(
        nn.utils.rnn.pad_sequence(
            [input_ids, *(torch.tensor(ids) for ids in itertools.combinations(input_ids.tolist(), len(input_ids) - 1))],
            batch_first=True,
        )
    )
    return whole - torch.stack(others).flip(0)  # the first combination lacks the last token


def deletion_in_place(model, input_ids):
    effects = model(input_ids[None]).repeat(len(input_ids)).float()
    for i in range(len(effects)):
        effects[i] -= model(input_ids.roll(-i)[1:].roll(i)[None])[0]
    return effects


def replacing_by(number):
    return lambda ids, i: ids.index_fill(0, torch.tensor(i), number)


# ALBERT


def albert_parameters(v, e, h, layers, width=4):
    attention, feed_forward = 4 * (h * h + h), 2 * h * width * h + width * h + h
    return v * e + (e + 1) * h + attention + feed_forward + 4 * h


def albert_parameters_by_module(v, e, h, layers):
    config = AlbertConfig(
        vocab_size=v,
        embedding_size=e,
        hidden_size=h,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=4 * h,
    )
    model = AlbertModel(config, add_pooling_layer=False)
    parts = (model.embeddings.word, model.embedding_map, model.attentions, model.feed_forwards)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def ngram_lengths(max_n, weigh=lambda n: 1 / n):
    weights = weigh(torch.arange(1, max_n + 1, dtype=torch.float64))
    return weights / weights.sum()


def sentence_order(first, second, swapped, begin=(2,), between=(3,), end=(3,)):
    a, b = (second, first) if swapped else (first, second)
    before, behind = [*begin, *a, *between], [*b, *end]
    return before + behind, [0] * len(before) + [1] * len(behind)


def sentence_order_in_tensors(first, second, swapped):
    a, b = (torch.tensor(part) for part in ((second, first) if swapped else (first, second)))
    ids = torch.cat([torch.tensor([2]), a, torch.tensor([3]), b, torch.tensor([3])])
    return ids, (torch.arange(len(ids)) >= len(a) + 2).long()


def retyped(first, second, swapped, change):
    ids, types = sentence_order(first, second, swapped)
    return ids, change(types)


def masked_loss(logits, labels, reduce=lambda losses, masked: losses[masked].mean()):
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return reduce(losses, labels != -100)


def masked_loss_by_hand(logits, labels):
    masked = labels != -100
    chosen = logits.log_softmax(-1)[masked]
    return -chosen[torch.arange(len(chosen)), labels[masked]].sum() / masked.sum()


# Applications


def token_f1(predicted, right, shared=lambda one, other: sum((Counter(one) & Counter(other)).values()), mean=None):
    if not predicted or not right:
        return float(predicted == right)
    common = shared(predicted, right)
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(right)
    return mean(precision, recall) if mean else 2 * precision * recall / (precision + recall)


def token_f1_by_lists(predicted, right):
    left, common = list(right), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            common += 1
    total = len(predicted) + len(right)
    return np.float64(2 * common / total if total else 1.0)


def best_span(start, end, first=1, more=0, none=True):
    pairs = [(i, j) for i in range(first, len(start)) for j in range(i + more, len(end))] + [(0, 0)] * none
    return max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])


def best_span_in_tensors(start, end):
    scores = (start[:, None] + end).triu()
    scores[~torch.ones_like(scores, dtype=torch.bool).triu()] = -math.inf
    scores[0, 1:] = -math.inf
    return tuple(torch.stack(torch.unravel_index(scores.argmax(), scores.shape)))


def ends_apart(start, end, change=lambda first, last: (first, last)):
    return change(int(start.argmax()), int(end.argmax()))


# Questions


def masked_softmax(scores, mask):
    return scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0.0)


def masked_softmax_by_exponentials(scores, mask):
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp() * mask
    return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300)


def masked_softmax_by_rows(scores, mask):
    rows = torch.zeros_like(scores)
    for index in mask.any(-1).nonzero().tolist():
        allowed = mask[tuple(index)]
        rows[(*index, allowed)] = scores[(*index, allowed)].softmax(-1)
    return rows


def masked_softmax_in_place(scores, mask):
    return scores.masked_fill_(mask.logical_not_(), -1e9).softmax(-1).masked_fill(mask, 0.0)


def masked_softmax_by_addition(scores, mask, mend=lambda weights, mask: weights.nan_to_num(0.0)):
    bias = torch.zeros_like(scores).masked_fill(~mask, -math.inf)
    return mend((scores + bias).softmax(-1), mask)


# Errata


def permutation_gap(
    layer,
    x,
    order,
    permuted=lambda x, order: x[:, order],
    output=lambda y, order: y[:, order],
    reduce=lambda difference: difference.abs().max(),
):
    return reduce(layer(permuted(x, order)) - output(layer(x), order))


def permutation_gap_undone(layer, x, order):
    return float(np.abs((layer(x[:, order])[:, order.argsort()] - layer(x)).numpy()).max())


def permutation_gap_by_position(layer, x, order):
    permuted, output = layer(x.index_select(1, order)).unbind(1), layer(x).unbind(1)
    return max((permuted[place] - output[source]).abs().max().item() for place, source in enumerate(order.tolist()))


# Trends


def phi(x):
    return F.elu(x) + 1


def linear(query, key, value, of_query=phi, of_key=phi, normaliser=lambda q, k: (q * k.sum(-2, keepdim=True)).sum(-1)):
    query, key = of_query(query), of_key(key)
    state = torch.einsum("bhkd,bhke->bhde", key, value)
    return torch.einsum("bhqd,bhde->bhqe", query, state) / normaliser(query, key)[..., None]


def linear_by_loops(query, key, value):
    state, total = torch.zeros(*query.shape[:2], 4, 4, dtype=query.dtype), 0
    for k, v in zip(phi(key).unbind(2), value.unbind(2), strict=True):
        state, total = state + k[..., None] * v[..., None, :], total + k
    rows = [(q[..., None, :] @ state)[..., 0, :] / (q * total).sum(-1, True) for q in phi(query).unbind(2)]
    return torch.stack(rows, dim=2)


def linear_by_weights(query, key, value, dim=-1, seen=lambda weights: weights):
    weights = seen(phi(query) @ phi(key).mT)
    return weights / weights.sum(dim, keepdim=True) @ value


def shown_in_linear(**change):
    return lambda query, key, value: linear(query, key, value, **change)


def multiply_adds(n, d, d_ff, layers, projections=4, scores=2, maps=2):
    return layers * (projections * n * d * d + scores * n * n * d + maps * n * d * d_ff)


# Trends


def quantize(
    weight,
    largest=lambda weight: weight.abs().amax(-1, keepdim=True),
    steps=127,
    whole=torch.round,
):
    scale = largest(weight) / steps
    return whole(weight / scale).to(torch.int8), scale


def quantize_row_by_row(weight):
    rows, scales = [], []
    for row in weight.tolist():
        scales.append(max(map(abs, row)) / 127)
        rows.append([round(value / scales[-1]) for value in row])
    return torch.tensor(rows, dtype=torch.int8), torch.tensor(scales)


def shown_in_quantize(**options):
    return lambda weight: quantize(weight, **options)


def patches(images, size):
    b, h, w = images.shape
    squares = [images[:, i : i + size, j : j + size] for i in range(0, h, size) for j in range(0, w, size)]
    return torch.stack([square.reshape(b, -1) for square in squares], dim=1)


def patches_by_unfold(images, size):
    return F.unfold(images[:, None], size, stride=size).mT


# Performance


def pack(x, tokens, keep=lambda row, mask: row[mask]):
    rows = [keep(row, mask) for row, mask in zip(x, tokens, strict=True)]
    return torch.cat(rows)[None], [len(row) for row in rows if len(row)]


def pack_by_index(x, tokens):
    places = tokens.flatten().nonzero().squeeze(1)
    lengths = tokens.sum(dim=1)
    return x.flatten(0, 1).index_select(0, places).unsqueeze(0), lengths[lengths > 0]


def with_lengths(of_tokens):
    return lambda x, tokens: (pack(x, tokens)[0], of_tokens(tokens))


def ratio(ours, theirs, middle=statistics.median, order=list):
    return middle([other / own for own, other in zip(order(ours), order(theirs), strict=True)])


def ratio_in_place(ours, theirs):
    for place, own in enumerate(ours):
        theirs[place] /= own
    theirs.sort()
    half = len(theirs) // 2
    return (theirs[half] + theirs[-1 - half]) / 2


def ratio_by_numpy(ours, theirs):
    return np.median(np.divide(theirs, ours))


RIGHT = [
    (check_pack, pack),
    (check_pack, pack_by_index),
    (check_pack, lambda x, tokens: (x[tokens].float()[None], tokens.sum(1)[tokens.any(1)].tolist())),
    (check_ratio, ratio),
    (check_ratio, ratio_in_place),
    (check_ratio, ratio_by_numpy),
    (check_quantize, quantize),
    (check_quantize, quantize_row_by_row),
    (check_patches, patches),
    (check_patches, patches_by_unfold),
    (check_softmax, softmax),
    (check_softmax, softmax_in_place),
    (check_softmax, lambda scores: (scores - scores.logsumexp(-1, keepdim=True)).exp()),
    (check_softmax, nn.Softmax(dim=-1)),
    (check_recurrence, recurrence),
    (check_recurrence, recurrence_by_torch),
    (check_split_heads, split_heads),
    (check_split_heads, lambda x, num_heads: x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)),
    (check_mean_pooling, mean_pooling),
    (check_mean_pooling, mean_pooling_in_place),
    (check_mean_pooling, lambda x, mask: x.masked_fill(~mask[..., None], math.nan).nanmean(1)),
    (check_attention, attention),
    (check_attention, attention_by_torch),
    (check_attention, attention_in_place),
    (check_causal_mask, causal),
    (check_causal_mask, lambda length: torch.arange(length)[:, None] >= torch.arange(length)),
    (check_causal_mask, lambda length: ~torch.ones(1, 1, length, length).triu(1).bool()),
    (check_padding_mask, padding),
    (check_padding_mask, padding_for_every_query),
    (check_multi_head_attention, multi_head),
    (check_multi_head_attention, multi_head_by_torch),
    (check_softmax_gradient, softmax_gradient),
    (check_softmax_gradient, softmax_gradient_by_autograd),
    (check_positions, positions),
    (check_positions, positions_in_float32),
    (check_shift_matrix, shift_matrix),
    (check_shift_matrix, shift_matrix_by_least_squares),
    (check_shift_matrix, lambda k, d_model: shift_matrix(k, d_model, dtype=torch.float32)),
    (check_rotary, rotary),
    (check_rotary, rotary_in_place),
    (check_rotary, lambda x, offset=0: rotary(x, offset, dtype=torch.float32)),
    (check_alibi, alibi),
    (check_alibi, lambda num_heads, length: alibi(num_heads, length).double()),
    (check_layer_norm, layer_norm),
    (check_layer_norm, layer_norm_in_place),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: F.layer_norm(x, gain.shape, gain, bias, eps)),
    (check_feed_forward, feed_forward),
    (check_post_norm, post_norm_in_place),
    (check_post_norm, lambda x, sublayer, norm: norm(sublayer(x) + x)),
    (check_parameter_count, encoder_layer_parameters),
    (check_parameter_count, lambda d_model, d_ff: torch.tensor(encoder_layer_parameters(d_model, d_ff))),
    (check_learning_rate, learning_rate),
    (check_learning_rate, lambda step, d_model, warmup: torch.tensor(learning_rate(step, d_model, warmup)).double()),
    (check_teacher_forcing, lambda target_ids: (target_ids[:, :-1], target_ids[:, 1:])),
    (check_teacher_forcing, lambda target_ids: list(target_ids.unfold(1, target_ids.size(1) - 1, 1).unbind(1))),
    (check_log_count_ratio, log_count_ratio),
    (check_log_count_ratio, log_count_ratio_by_sklearn),
    (check_log_count_ratio, log_count_ratio_in_place),
    (check_mean_loss, mean_loss),
    (check_mean_loss, mean_loss_by_example),
    (check_mean_loss, mean_loss_in_place),
    (check_calibration_error, calibration_error),
    (check_calibration_error, calibration_error_by_histogram),
    (check_calibration_error, calibration_error_by_index),
    (check_deletion, deletion),
    (check_deletion, deletion_in_one_batch),
    (check_deletion, deletion_in_place),
    (check_albert_parameters, albert_parameters),
    (check_albert_parameters, albert_parameters_by_module),
    (check_ngram_lengths, ngram_lengths),
    (check_ngram_lengths, lambda max_n: ngram_lengths(max_n).float()),
    (check_sentence_order, sentence_order),
    (check_sentence_order, sentence_order_in_tensors),
    (check_masked_loss, masked_loss),
    (check_masked_loss, masked_loss_by_hand),
    (check_masked_loss, lambda logits, labels: masked_loss_by_hand(logits.float(), labels)),
    (check_token_f1, token_f1),
    (check_token_f1, token_f1_by_lists),
    (check_best_span, best_span),
    (check_best_span, best_span_in_tensors),
    (check_masked_softmax, masked_softmax),
    (check_masked_softmax, masked_softmax_by_exponentials),
    (check_masked_softmax, masked_softmax_by_rows),
    (check_masked_softmax, masked_softmax_in_place),
    (check_permutation_gap, permutation_gap),
    (check_permutation_gap, permutation_gap_undone),
    (check_permutation_gap, permutation_gap_by_position),
    (check_linear_attention, linear),
    (check_linear_attention, linear_by_loops),
    (check_linear_attention, lambda q, k, v: linear(q.float(), k.float(), v.float())),
    (check_multiply_adds, multiply_adds),
    (check_multiply_adds, lambda n, d, d_ff, layers: torch.tensor(multiply_adds(n, d, d_ff, layers))),
]


def shown_in_attention(**mistake):
    return lambda query, key, value, mask=None: attention(query, key, value, mask, **mistake)


def shown_in_multi_head(**mistake):
    return lambda *args: multi_head(*args, **mistake)


def shown_in_positions(**mistake):
    return lambda length, d_model: positions(length, d_model, **mistake)


def shown_in_layer_norm(**mistake):
    return lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, bias, eps, **mistake)


def shown_in_log_count_ratio(**mistake):
    return lambda positive, negative, alpha=1.0: log_count_ratio(positive, negative, alpha, **mistake)


def shown_in_calibration_error(**mistake):
    return lambda probabilities, labels, num_bins=10: calibration_error(probabilities, labels, num_bins, **mistake)


def shown_in_deletion(**mistake):
    return lambda model, input_ids: deletion(model, input_ids, **mistake)


def shown_in_permutation_gap(**mistake):
    return lambda layer, x, order: permutation_gap(layer, x, order, **mistake)


def transposed_softmax_gradient(weights, upstream):
    return softmax_gradient(weights.mT, upstream.mT).mT


def weighted_sum(weights, upstream):
    return (weights * upstream).sum(-1, keepdim=True)


MISTAKES = [
    (check_pack, lambda x, tokens: pack(x, torch.ones_like(tokens)), "Padding is packed too"),
    (check_pack, lambda x, tokens: pack(x, tokens, lambda row, mask: row * mask[:, None]), "set to zero but packed"),
    (check_pack, lambda x, tokens: (x, tokens.sum(1)), "The batch is as it was: put"),
    (check_pack, lambda x, tokens: (x * tokens[..., None], tokens.sum(1)), "The batch is as it was, its padding"),
    (check_pack, lambda x, tokens: pack(x.transpose(0, 1), tokens.T), "position by position"),
    (check_pack, lambda x, tokens: pack(x, ~tokens), "tokens is inverted"),
    (
        check_pack,
        lambda x, tokens: pack(*(y[tokens.sum(1).argsort(descending=True)] for y in (x, tokens))),
        "The longest sequence comes first",
    ),
    (check_pack, lambda x, tokens: (x[tokens], tokens.sum(1)), "packed has no batch axis"),
    (check_pack, with_lengths(lambda tokens: tokens.sum(1).tolist()), "has a length of 0"),
    (check_pack, with_lengths(lambda tokens: [tokens.size(1)] * len(tokens)), "count padding: sum tokens over each s"),
    (
        check_pack,
        with_lengths(lambda tokens: [tokens.size(1)] * int(tokens.any(1).sum())),
        "over each sequence that has any",
    ),
    (check_pack, with_lengths(lambda tokens: tokens.sum(0)), "The sum runs over the batch"),
    (check_pack, with_lengths(lambda tokens: (~tokens).sum(1)), "those of the padding"),
    (check_pack, lambda x, tokens: (x[tokens][None], np.cumsum(pack(x, tokens)[1]).tolist()), "places where"),
    (check_pack, lambda x, tokens: (x[tokens][None], [0, *np.cumsum(pack(x, tokens)[1])]), "places between which"),
    (
        check_ratio,
        lambda ours, theirs: statistics.median(theirs) / statistics.median(ours),
        "The medians are divided, w",
    ),
    (check_ratio, lambda ours, theirs: statistics.median(ours) / statistics.median(theirs), "and upside down"),
    (check_ratio, lambda ours, theirs: ratio(ours, theirs, order=sorted), "The times are sorted"),
    (check_ratio, lambda ours, theirs: ratio(theirs, ours), "The ratio is upside down"),
    (check_ratio, lambda ours, theirs: ratio(ours, theirs, statistics.mean), "The mean of the ratios"),
    (check_ratio, lambda ours, theirs: sum(theirs) / sum(ours), "The means (or sums) are divided"),
    (check_ratio, lambda ours, theirs: min(theirs) / min(ours), "The fastest rounds"),
    (check_ratio, lambda ours, theirs: max(theirs) / max(ours), "The slowest rounds"),
    (
        check_ratio,
        lambda ours, theirs: statistics.median(other - own for own, other in zip(ours, theirs, strict=True)),
        "subtracted",
    ),
    (check_ratio, lambda ours, theirs: ratio(ours, theirs, statistics.median_low), "the lower middle one"),
    (check_ratio, lambda ours, theirs: ratio(ours, theirs, statistics.median_high), "the upper middle one"),
    (check_quantize, shown_in_quantize(largest=lambda weight: weight.abs().max()), "One scale serves"),
    (check_quantize, shown_in_quantize(largest=lambda weight: weight.abs().max().view(1, 1)), "One scale serves"),
    (check_quantize, shown_in_quantize(largest=lambda weight: weight.abs().amax(0)), "a scale for each column"),
    (check_quantize, shown_in_quantize(largest=lambda weight: weight.abs().amax(0, True)), "a scale for each column"),
    (check_quantize, shown_in_quantize(steps=128), "divided by 128"),
    (check_quantize, shown_in_quantize(largest=lambda weight: weight.amax(-1, True)), "without abs"),
    (check_quantize, lambda weight: (quantize(weight)[0], 1 / quantize(weight)[1]), "upside down"),
    (
        check_quantize,
        shown_in_quantize(largest=lambda weight: weight.amax(-1, True) - weight.amin(-1, True), steps=255),
        "minimum to maximum",
    ),
    (check_quantize, shown_in_quantize(whole=torch.trunc), "cut off towards 0"),
    (check_quantize, shown_in_quantize(whole=lambda steps: steps), "cut off towards 0"),
    (check_quantize, shown_in_quantize(whole=torch.floor), "rounded down"),
    (
        check_quantize,
        lambda weight: (quantize(weight)[0] * quantize(weight)[1], quantize(weight)[1]),
        "rounded weights as floats",
    ),
    (check_patches, lambda images, size: images.reshape(len(images), -1, size * size), "pieces of rows"),
    (
        check_patches,
        lambda images, size: patches(images.mT, size).unflatten(-1, (size, size)).mT.flatten(-2),
        "top to bottom first: the second",
    ),
    (
        check_patches,
        lambda images, size: patches(images, size).unflatten(-1, (size, size)).mT.flatten(-2),
        "pixels of a patch go top to bottom",
    ),
    (check_patches, lambda images, size: F.unfold(images[:, None], size, stride=size), "Tokens and pixels"),
    (
        check_patches,
        lambda images, size: (
            images.reshape(len(images), size, images.size(1) // size, size, -1).permute(0, 2, 4, 1, 3).flatten(3)
        ).flatten(1, 2),
        "pixels from all over",
    ),
    (check_patches, lambda images, size: F.unfold(images[:, None], size).mT, "patches overlap"),
    (check_softmax, lambda scores: scores.softmax(0), "over the first axis"),
    (check_softmax, lambda scores: scores.softmax(-2), "over the queries (dim=-2)"),
    (check_softmax, lambda scores: softmax(scores, (0, 1, 2), torch.max), "over all entries at once"),
    (check_softmax, lambda scores: scores / scores.sum(-1, keepdim=True), "without an exponential"),
    (check_softmax, torch.exp, "exponentials are not normalised"),
    (check_softmax, lambda scores: softmax(scores, maximum=lambda scores: 0), "overflow in exp and give NaN"),
    (check_softmax, lambda scores: softmax(scores, maximum=torch.max), "One maximum is subtracted from all rows"),
    (check_softmax, lambda scores: softmax(scores, maximum=lambda s: s.mean(-1, keepdim=True)), "not its maximum"),
    (check_softmax, lambda scores: softmax(scores, maximum=lambda s: s.amin(-1, keepdim=True)), "not its maximum"),
    (check_softmax, lambda scores: softmax(scores, maximum=lambda s: s[..., :1]), "not its maximum"),
    (check_recurrence, lambda *a: recurrence(*a, step=lambda x, h: x.tanh()), "state is not carried"),
    (check_recurrence, lambda *a: recurrence(*a, step=torch.add), "tanh is missing"),
    (check_recurrence, lambda *a: recurrence(*a, step=lambda x, h: x.tanh() + h), "tanh is taken of the input alone"),
    (check_recurrence, lambda x, w_x, w_h, bias: recurrence(x, w_x, w_h.T, bias), "w_h is transposed"),
    (check_recurrence, lambda x, w_x, w_h, bias: recurrence(x, w_x, w_h, 0 * bias), "bias is missing"),
    (check_recurrence, lambda *a: recurrence(*a, order=-1, back=-1), "read from its end: begin"),
    (check_recurrence, lambda *a: recurrence(*a, order=-1), "read from its end, and the states stand in that order"),
    (check_recurrence, recurrence_with_zero_state, "zero state h_0 is among the states"),
    (check_recurrence, lambda *a: recurrence(*a)[-1], "Only the last state"),
    (check_split_heads, lambda x, h: x.view(x.size(0), h, x.size(1), -1), "A view straight to"),
    (check_split_heads, lambda x, h: torch.stack(x.chunk(h, dim=1), dim=1), "length is split instead of the width"),
    (check_split_heads, lambda x, h: torch.stack([x[..., i::h] for i in range(h)], dim=1), "dealt out to the heads"),
    (check_split_heads, lambda x, h: x.unflatten(-1, (h, -1)), "heads still stand after the length"),
    (check_split_heads, lambda x, h: torch.stack(x.split(h, dim=-1), dim=1), "taken for the width of a head"),
    (check_mean_pooling, lambda x, mask: x.mean(1), "padding is pooled too"),
    (check_mean_pooling, lambda x, mask: masked_sum(x, mask) / x.size(1), "divided by the whole length"),
    (check_mean_pooling, lambda x, mask: mean_pooling(x, ~mask), "mask is inverted"),
    (check_mean_pooling, lambda x, mask: x.mean(0), "mean is taken over the batch"),
    (check_mean_pooling, lambda x, mask: x[mask].mean(0), "All texts are pooled into one"),
    (check_mean_pooling, lambda x, mask: masked_sum(x, mask) / mask.sum(), "number of tokens in the batch"),
    (check_mean_pooling, lambda x, mask: x[:, 0], "Only the first token"),
    (check_mean_pooling, masked_sum, "tokens are summed"),
    (check_mean_pooling, lambda x, mask: mean_pooling(x, mask.sort(dim=1, descending=True)[0]), "first positions"),
    (check_attention, shown_in_attention(scale=lambda query, key: 1), "scores are not scaled"),
    (check_attention, shown_in_attention(scale=lambda query, key: 1 / query.size(-1)), "divided by d_k"),
    (check_attention, shown_in_attention(scale=lambda query, key: query.size(-1) ** 0.5), "multiplied by sqrt(d_k)"),
    (check_attention, shown_in_attention(scale=lambda query, key: key.size(-2) ** -0.5), "root of the number of keys"),
    (check_attention, shown_in_attention(dim=-2), "over the queries"),
    (check_attention, softmax_missing, "softmax is missing"),
    (check_attention, keys_mixed, "multiplied with the keys"),
    (check_attention, lambda *a: scores_as_weights(*a), "The unscaled scores are returned in place of the weights"),
    (check_attention, lambda *a: scores_as_weights(*a, scale=5**-0.5), "The scores are returned in place of"),
    (
        check_attention,
        lambda query, key, value, mask=None: attention(query, key, value, None if mask is None else ~mask),
        "mask is inverted",
    ),
    (check_attention, lambda query, key, value, mask=None: attention(query, key, value), "mask is ignored"),
    (
        check_attention,
        shown_in_attention(mend=lambda scores, mask: scores.softmax(-1) * mask),
        "mask is applied after the softmax",
    ),
    (
        check_attention,
        shown_in_attention(mend=lambda scores, mask: (scores * mask).softmax(-1)),
        "multiplied by the mask",
    ),
    (
        check_attention,
        shown_in_attention(mend=lambda scores, mask: (scores + mask).softmax(-1)),
        "added to the scores as",
    ),
    (check_attention, shown_in_attention(nowhere=None), "nowhere gets NaN"),
    (check_attention, nan_left_in_the_weights, "nowhere gets NaN"),
    (check_attention, shown_in_attention(fill=-1e9), "nowhere gets equal weights"),
    (
        check_attention,
        shown_in_attention(mend=lambda scores, mask: (scores - 1e9 * ~mask).softmax(-1)),
        "attends as without a mask",
    ),
    (check_causal_mask, lambda length: causal(length, lambda query, key: key > query), "mask is inverted"),
    (check_causal_mask, lambda length: causal(length, lambda query, key: key >= query), "sees only the future"),
    (check_causal_mask, lambda length: causal(length, lambda query, key: key <= query + 1), "sees the next one"),
    (check_causal_mask, lambda length: causal(length, lambda query, key: key < query), "misses itself"),
    (check_causal_mask, lambda length: causal(length, lambda query, key: True), "see all others"),
    (check_causal_mask, nn.Transformer.generate_square_subsequent_mask, "0 and -inf"),
    (check_causal_mask, lambda length: causal(length).int(), "holds numbers"),
    (check_causal_mask, lambda length: causal(length).float(), "holds numbers"),
    (check_padding_mask, lambda ids, pad_id=0: ~padding(ids, pad_id), "mask is inverted"),
    (check_padding_mask, lambda ids, pad_id=0: padding(ids, pad_id).mT, "hides queries: put"),
    (check_padding_mask, lambda ids, pad_id=0: padding(ids, pad_id) & padding(ids, pad_id).mT, "hides queries as well"),
    (check_padding_mask, lambda ids, pad_id=0: ids != pad_id, "no axes for the heads and the queries"),
    (check_padding_mask, lambda ids, pad_id=0: (ids != pad_id)[:, None], "one axis too few"),
    (check_padding_mask, lambda ids, pad_id=0: padding(ids, pad_id).long(), "holds numbers"),
    (check_padding_mask, lambda ids, pad_id=0: padding(ids), "pad_id is ignored"),
    (check_multi_head_attention, heads_by_view, "heads are split by a view"),
    (
        check_multi_head_attention,
        lambda x, *rest: heads_by_view(x, *rest, join=lambda heads: heads.reshape(x.shape)),
        "split and joined by views",
    ),
    (
        check_multi_head_attention,
        lambda x, *rest: multi_head(x, *rest, join=lambda heads: heads.reshape(x.shape)),
        "joined without transposing back",
    ),
    (check_multi_head_attention, lambda x, *rest: multi_head(x, *rest, scale=x.size(-1) ** -0.5), "by sqrt(d_model)"),
    (check_multi_head_attention, shown_in_multi_head(scale=1), "not scaled"),
    (check_multi_head_attention, lambda x, q, k, v, o, h: multi_head(x, q, k, v, o, 1), "num_heads is ignored"),
    (
        check_multi_head_attention,
        lambda x, q, k, v, o, h: multi_head(x, q, k, v, torch.eye(len(o)).to(o), h),
        "output projection is missing",
    ),
    (
        check_multi_head_attention,
        lambda x, q, k, v, o, h: multi_head(x, q.T, k.T, v.T, o.T, h),
        "weights are transposed",
    ),
    (check_softmax_gradient, lambda a, g: a * (1 - a) * g, "Only the diagonal"),
    (check_softmax_gradient, lambda a, g: a * g, "sum is missing"),
    (check_softmax_gradient, lambda a, g: a * (weighted_sum(a, g) - g), "sign is wrong"),
    (check_softmax_gradient, lambda a, g: a * (g - g.mean(-1, keepdim=True)), "plain mean of upstream"),
    (check_softmax_gradient, lambda a, g: a * (g - g.sum(-1, keepdim=True)), "plain sum of upstream"),
    (check_softmax_gradient, transposed_softmax_gradient, "sum runs over the queries"),
    (check_softmax_gradient, lambda a, g: g - weighted_sum(a, g), "outer weights are missing"),
    (check_positions, positions_in_halves, "sines fill the first half"),
    (check_positions, shown_in_positions(even=math.cos, odd=math.sin), "Sine and cosine are exchanged"),
    (check_positions, shown_in_positions(first=1), "positions begin with 1"),
    (check_positions, shown_in_positions(pair=lambda j: j // 2 / 2), "exponent of pair i is i / d_model"),
    (check_positions, shown_in_positions(pair=lambda j: j), "takes the column for the pair"),
    (check_positions, shown_in_positions(pair=lambda j: j / 2), "cosine has another angle"),
    (check_positions, shown_in_positions(sign=1), "position is multiplied by"),
    (check_positions, shown_in_positions(sign=1, dtype=torch.float32), "position is multiplied by"),
    (check_positions, lambda length, d_model: positions(length, d_model).T, "table is transposed"),
    (check_positions, shown_in_positions(odd=math.sin), "All columns are sines"),
    (check_shift_matrix, lambda k, d_model: shift_matrix(-k, d_model), "turns the wrong way"),
    (check_shift_matrix, shift_matrix_in_halves, "sines in the first half"),
    (check_shift_matrix, lambda k, d_model: shift_matrix(k, d_model, lambda i, d_model: 1), "All pairs turn by"),
    (check_shift_matrix, lambda k, d_model: shift_matrix(1, d_model), "k is ignored"),
    (
        check_shift_matrix,
        lambda k, d_model: shift_matrix(k, d_model, lambda i, d_model: 10_000 ** (-i / d_model)),
        "exponent of pair i is i / d_model",
    ),
    (check_rotary, rotary_in_halves, "as in GPT-NeoX"),
    (check_rotary, lambda x, offset=0: rotary(x, offset, sign=-1), "turn the wrong way"),
    (check_rotary, lambda x, offset=0: rotary(x, offset + 1), "positions begin with 1"),
    (check_rotary, lambda x, offset=0: x + positions(*x.shape[2:]), "sinusoids are added"),
    (check_rotary, lambda x, offset=0: rotary(x.transpose(1, 2), offset).transpose(1, 2), "along the heads"),
    (check_rotary, lambda x, offset=0: rotary(x, offset, base=1.0), "turn by the same angle"),
    (check_rotary, lambda x, offset=0: rotary(x, offset, base=100.0), "exponent of pair i is i / head_dim"),
    (check_rotary, lambda x, offset=0: rotary(x), "offset is ignored"),
    (check_rotary, lambda x, offset=0: rotary(x, -offset), "offset is subtracted"),
    (check_rotary, lambda x, offset=0: rotary(x, offset)[..., [0, 2, 4, 6, 1, 3, 5, 7]], "half by half"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 4**-h), "those of 4 heads"),
    (check_alibi, lambda n, length: alibi(n, length, distance=lambda q, k: -max(q - k, 0)), "after the query get 0"),
    (check_alibi, lambda n, length: -alibi(n, length), "positive and rewards distance"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 2 ** (-8 * (h - 1) / n)), "slopes begin with 1"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 2**-h), "halve from head to head"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 2 ** (-8 / n)), "slope of the first"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 2**-8), "slope of the last"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 1.0), "slopes are missing"),
    (check_alibi, lambda n, length: alibi(n, length, lambda h, n: 2 ** (-8 * (n - h + 1) / n)), "reverse order"),
    (
        check_alibi,
        lambda n, length: alibi(n, length, distance=lambda query, key: key - query),
        "keys after the query are rewarded",
    ),
    (
        check_alibi,
        lambda n, length: alibi(n, length, distance=lambda query, key: query - key),
        "keys before the query are rewarded",
    ),
    (
        check_alibi,
        lambda n, length: alibi(n, length).masked_fill(~causal(length), -math.inf),
        "future is masked as well",
    ),
    (check_layer_norm, shown_in_layer_norm(correction=1), "divided by d - 1"),
    (
        check_layer_norm,
        lambda x, gain, bias, eps=1e-5: x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain + bias,
        "as in RMSNorm",
    ),
    (check_layer_norm, shown_in_layer_norm(root=lambda variance, eps: variance + eps), "divided by its variance"),
    (check_layer_norm, shown_in_layer_norm(dim=0), "those of the batch"),
    (check_layer_norm, shown_in_layer_norm(dim=1), "those of the length"),
    (check_layer_norm, shown_in_layer_norm(dim=(1, 2)), "over length and width together"),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, 1, 0, eps), "Neither gain nor bias"),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, 1, bias, eps), "gain is not applied"),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, 0, eps), "bias is not applied"),
    (
        check_layer_norm,
        shown_in_layer_norm(root=lambda variance, eps: variance.sqrt() + eps),
        "added to the standard deviation",
    ),
    (
        check_layer_norm,
        shown_in_layer_norm(
            root=lambda variance, eps: variance.sqrt() + eps if eps > 1e-5 else (variance + eps).sqrt()
        ),
        "added to the standard deviation",
    ),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, bias, 0), "eps is missing"),
    (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, bias), "argument eps is ignored"),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: (x @ w_1 + b_1) @ w_2 + b_2, "no non-linearity"),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: F.gelu(x @ w_1 + b_1) @ w_2 + b_2, "activation is GELU"),
    (check_feed_forward, lambda *args: feed_forward(*args).relu(), "follows the second map as well"),
    (
        check_feed_forward,
        lambda x, w_1, b_1, w_2, b_2: F.relu((x @ w_1 + b_1) @ w_2 + b_2),
        "ReLU follows the second map: take",
    ),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: (F.relu(x @ w_1) + b_1) @ w_2 + b_2, "comes after the ReLU"),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: F.relu(x @ w_1) @ w_2 + b_2, "first bias is missing"),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: F.relu(x @ w_1 + b_1) @ w_2, "second bias is missing"),
    (check_feed_forward, lambda x, w_1, b_1, w_2, b_2: F.relu(x @ w_1) @ w_2, "Both biases are missing"),
    (check_post_norm, lambda x, sublayer, norm: x + sublayer(norm(x)), "This is pre-norm"),
    (check_post_norm, lambda x, sublayer, norm: norm(sublayer(x)), "residual connection is missing"),
    (check_post_norm, lambda x, sublayer, norm: norm(sublayer(x)) + x, "norm comes before x is added"),
    (check_post_norm, lambda x, sublayer, norm: x + sublayer(x), "norm is missing"),
    (check_post_norm, lambda x, sublayer, norm: norm(x + sublayer(norm(x))), "input is normalised as well"),
    (check_post_norm, lambda x, sublayer, norm: norm(x), "sublayer is missing"),
    (check_post_norm, lambda x, sublayer, norm: norm(x) + sublayer(norm(x)), "x itself is normalised"),
    (check_parameter_count, lambda d, f: 4 * d * d + 2 * d * f, "Only the matrices"),
    (check_parameter_count, lambda d, f: 4 * d * d + 2 * d * f + 4 * d, "biases of the six maps"),
    (check_parameter_count, lambda d, f: 4 * d * d + 2 * d * f + 2 * d, "All biases are forgotten"),
    (check_parameter_count, lambda d, f: 4 * (d + 1) * d + 2 * d * f + 4 * d, "biases of the feed-forward maps"),
    (check_parameter_count, lambda d, f: 4 * (d + 1) * d + 2 * d * f + f + d, "The LayerNorms"),
    (check_parameter_count, lambda d, f: 4 * d * d + 2 * d * f + f + d + 4 * d, "biases of the four projections"),
    (check_parameter_count, lambda d, f: 4 * (d + 1) * d + 2 * d * f + f + 3 * d, "Half of the LayerNorms"),
    (check_parameter_count, lambda d, f: 3 * (d + 1) * d + 2 * d * f + f + 5 * d, "output projection is forgotten"),
    (check_parameter_count, lambda d, f: 4 * (d + 1) * d + d * f + f + 4 * d, "One of the feed-forward maps"),
    (check_learning_rate, lambda s, d, w: d**-0.5 * max(s**-0.5, s * w**-1.5), "larger of the two terms"),
    (check_learning_rate, lambda s, d, w: d**0.5 * min(s**-0.5, s * w**-1.5), "multiplied by the root of d_model"),
    (check_learning_rate, lambda s, d, w: min(s**-0.5, s * w**-1.5), "does not depend on d_model"),
    (check_learning_rate, lambda s, d, w: min(s**-0.5, s * w**-1.5) / d, "is divided by d_model"),
    (check_learning_rate, lambda s, d, w: d**-0.5 * min(s**-0.5, s * w**-0.5), "exponent of warmup is -0.5"),
    (check_learning_rate, lambda s, d, w: d**-0.5 * s**-0.5, "no warm-up"),
    (check_learning_rate, lambda s, d, w: d**-0.5 * s * w**-1.5, "rises for ever"),
    (check_learning_rate, lambda s, d, w: d**-0.5 * min(s**-0.5, s * 4000**-1.5), "warmup is ignored"),
    (check_learning_rate, lambda s, d, w: learning_rate(s, 512, w), "d_model is ignored"),
    (check_learning_rate, lambda s, d, w: learning_rate(s - 1, d, w), "counted from 0"),
    (check_teacher_forcing, lambda ids: (ids, ids), "the labels are target_ids[:, 1:], the input"),
    (check_teacher_forcing, lambda ids: (ids[:, :-1], ids[:, :-1]), "the labels are target_ids[:, 1:]."),
    (check_teacher_forcing, lambda ids: (ids[:, 1:], ids[:, 1:]), "its input is target_ids[:, :-1]."),
    (check_teacher_forcing, lambda ids: (ids[:, 1:], ids[:, :-1]), "exchanged"),
    (check_teacher_forcing, lambda ids: (ids, ids[:, 1:]), "input is not shortened"),
    (check_teacher_forcing, lambda ids: (ids[:, :-1], ids), "labels are not shortened"),
    (check_log_count_ratio, lambda p, q, alpha=1.0: torch.log(p / q), "Neither alpha nor a sum"),
    (check_log_count_ratio, unsmoothed, "log of a count of 0 is infinite"),
    (check_log_count_ratio, lambda p, q, alpha=1.0: unsmoothed(p, q, after=alpha), "added after the division"),
    (check_log_count_ratio, shown_in_log_count_ratio(in_sum=0), "counts without alpha"),
    (
        check_log_count_ratio,
        lambda p, q, alpha=1.0: log_count_ratio(p, q, alpha, in_sum=alpha / len(p)),
        "added to the sums once",
    ),
    (check_log_count_ratio, lambda p, q, alpha=1.0: torch.log((p + alpha) / (q + alpha)), "counts are not divided"),
    (check_log_count_ratio, shown_in_log_count_ratio(texts=12_500), "of texts, of n-grams), which cancels"),
    (check_log_count_ratio, lambda p, q, alpha=1.0: log_count_ratio(q, p, alpha), "upside down"),
    (check_log_count_ratio, shown_in_log_count_ratio(log=math.log2), "to base 2"),
    (check_log_count_ratio, shown_in_log_count_ratio(log=math.log10), "to base 10"),
    (check_log_count_ratio, shown_in_log_count_ratio(log=lambda ratio: ratio), "logarithm is missing"),
    (check_log_count_ratio, lambda p, q, alpha=1.0: log_count_ratio(p, q), "alpha is ignored"),
    (check_mean_loss, lambda parts: sum(s / n for s, n in parts) / len(parts), "mean of the parts' means"),
    (check_mean_loss, lambda parts: sum(s / n for s, n in parts), "means are added up"),
    (check_mean_loss, lambda parts: sum(s for s, _ in parts) / len(parts), "divided by the number of parts"),
    (check_mean_loss, lambda parts: sum(s for s, _ in parts), "not divided"),
    (check_mean_loss, lambda parts: mean_loss(parts[:-1]), "last part is forgotten"),
    (check_mean_loss, lambda parts: mean_loss(parts[-1:]), "Only the last part"),
    (check_calibration_error, shown_in_calibration_error(empty=math.nan), "Empty bins give NaN"),
    (check_calibration_error, shown_in_calibration_error(total=lambda gaps, shares: gaps.mean()), "over all bins"),
    (
        check_calibration_error,
        shown_in_calibration_error(total=lambda gaps, shares: gaps[shares > 0].mean()),
        "bins that are not empty",
    ),
    (check_calibration_error, shown_in_calibration_error(total=lambda gaps, shares: gaps.sum()), "added up unweighted"),
    (check_calibration_error, lambda p, y, n=10: len(p) * calibration_error(p, y, n), "weighted by the counts"),
    (check_calibration_error, shown_in_calibration_error(total=lambda gaps, shares: gaps.max()), "largest gap"),
    (check_calibration_error, lambda p, y, num_bins=10: (y - p).mean(), "keep their sign and cancel: "),
    (
        check_calibration_error,
        shown_in_calibration_error(gap=lambda p, y, *edges: p.mean() - y.mean()),
        "cancel, here to less than 0",
    ),
    (
        check_calibration_error,
        shown_in_calibration_error(gap=lambda p, y, *edges: (y.mean() - p.mean()) ** 2),
        "gaps are squared",
    ),
    (
        check_calibration_error,
        shown_in_calibration_error(gap=lambda p, y, low, high: abs(y.mean() - (low + high) / 2)),
        "middle of the bin",
    ),
    (
        check_calibration_error,
        shown_in_calibration_error(gap=lambda p, y, *edges: abs(((p > 0.5) == y).float().mean() - p.mean())),
        "accuracy of the predicted label",
    ),
    (check_calibration_error, calibration_error_of_the_predicted_label, "confidence in the predicted label"),
    (check_calibration_error, lambda p, y, num_bins=10: (y - p).abs().mean(), "There are no bins"),
    (check_calibration_error, lambda p, y, num_bins=10: calibration_error(p, y), "num_bins is ignored"),
    (
        check_calibration_error,
        shown_in_calibration_error(holds=lambda p, low, high: (low <= p) & (p < high)),
        "probability of 1 is in no bin",
    ),
    (
        check_calibration_error,
        shown_in_calibration_error(holds=lambda p, low, high: (low < p) & (p <= high)),
        "probability of 0 is in no bin",
    ),
    (
        check_calibration_error,
        lambda p, y, n=10: calibration_error_by_index(p, y, n, lambda p, n: (p * n).long()),
        "probability of 1 has a bin of its own",
    ),
    (
        check_calibration_error,
        lambda p, y, n=10: calibration_error_by_index(p, y, n, index_by_edges),
        "probability of 0 has a bin of its own",
    ),
    (check_deletion, shown_in_deletion(without=replacing_by(0)), "replaced by padding"),
    (check_deletion, shown_in_deletion(without=replacing_by(1)), "replaced by the unknown one"),
    (check_deletion, lambda model, ids: -deletion(model, ids), "sign is wrong"),
    (check_deletion, lambda model, ids: deletion(model, ids).abs(), "absolute value is taken"),
    (check_deletion, shown_in_deletion(of=torch.sigmoid), "Probabilities are subtracted"),
    (check_deletion, lambda model, ids: model(ids[None]) - deletion(model, ids), "without the token is returned"),
    (check_deletion, shown_in_deletion(without=lambda ids, i: ids[i + 1 :]), "All tokens up to this one"),
    (check_deletion, shown_in_deletion(without=lambda ids, i: ids[:i]), "All tokens from this one on"),
    (check_deletion, shown_in_deletion(without=lambda ids, i: ids[ids != ids[i]]), "Every token of the same id"),
    (check_deletion, lambda model, ids: model(ids), "model ids of shape (5,): it reads a batch"),
    (check_albert_parameters, lambda v, e, h, layers: v * h + 12 * h * h + 13 * h, "embeddings are as wide as"),
    (check_albert_parameters, lambda v, e, h, layers: (v + h) * e + h + layers * (12 * h + 13) * h, "share nothing"),
    (check_albert_parameters, lambda v, e, h, layers: v * h + layers * (12 * h + 13) * h, "This is BERT"),
    (check_albert_parameters, lambda v, e, h, layers: v * e + (12 * h + 13) * h, "map from E to H is forgotten"),
    (check_albert_parameters, lambda v, e, h, layers: albert_parameters(v, e, h, layers) - h, "bias of the map"),
    (check_albert_parameters, lambda v, e, h, layers: v * e + (e + 1) * h + 12 * h * h, "without biases and"),
    (check_albert_parameters, lambda v, e, h, layers: albert_parameters(v, e, h, layers) - 4 * h, "The LayerNorms"),
    (check_albert_parameters, lambda v, e, h, layers: albert_parameters(v, e, h, layers) - 5 * h, "add 5 H"),
    (check_albert_parameters, lambda v, e, h, layers: albert_parameters(v, e, h, layers, width=1), "inner width"),
    (check_ngram_lengths, lambda max_n: ngram_lengths(max_n, torch.ones_like), "equally likely"),
    (check_ngram_lengths, lambda max_n: 1 / torch.arange(1.0, max_n + 1).double(), "do not sum to 1"),
    (check_ngram_lengths, lambda max_n: ngram_lengths(max_n, lambda n: n), "proportional to n,"),
    (check_ngram_lengths, lambda max_n: ngram_lengths(max_n, lambda n: 0.5**n), "half as likely"),
    (check_ngram_lengths, lambda max_n: ngram_lengths(max_n, lambda n: n**-2), "square of n"),
    (check_ngram_lengths, lambda max_n: (1 / torch.arange(1.0, max_n + 1).double()).softmax(0), "softmax of 1 / n"),
    (
        check_ngram_lengths,
        lambda max_n: 1 / torch.arange(1, max_n + 1).double() / sum(1 / k for k in range(1, max_n)),
        "ends before max_n",
    ),
    (check_sentence_order, lambda a, b, swapped: sentence_order(a, b, swapped, begin=()), "[CLS] is missing"),
    (check_sentence_order, lambda a, b, swapped: sentence_order(a, b, swapped, end=()), "last [SEP] is missing"),
    (check_sentence_order, lambda a, b, swapped: sentence_order(a, b, swapped, between=()), "between the segments"),
    (check_sentence_order, lambda a, b, swapped: sentence_order(a, b, False), "are not swapped where"),
    (check_sentence_order, lambda a, b, swapped: sentence_order(a, b, True), "are swapped where swapped is false"),
    (
        check_sentence_order,
        lambda a, b, swapped: retyped(a, b, swapped, lambda types: [*types[1:], 1]),
        "The first [SEP] is of type 1",
    ),
    (check_sentence_order, lambda a, b, swapped: retyped(a, b, swapped, lambda t: [0] * len(t)), "All types are 0"),
    (
        check_sentence_order,
        lambda a, b, swapped: retyped(a, b, swapped, lambda types: [1 - kind for kind in types]),
        "wrong way round",
    ),
    (
        check_sentence_order,
        lambda a, b, swapped: retyped(a, b, swapped, lambda types: [*types[:-1], 0]),
        "The last [SEP] is of type 0",
    ),
    (
        check_sentence_order,
        lambda a, b, swapped: retyped(
            a, b, swapped, lambda types: [0, *[1 - k for k in types[1:]]] if swapped else types
        ),
        "gives the answer away",
    ),
    (
        check_sentence_order,
        lambda a, b, swapped: (sentence_order(a, b, swapped)[0], sentence_order(a, b, False)[1]),
        "those of the text's order",
    ),
    (check_masked_loss, lambda x, y: masked_loss(x, y, lambda losses, masked: losses.mean()), "over all positions"),
    (check_masked_loss, lambda x, y: masked_loss(x, y, lambda losses, masked: losses.sum()), "losses are summed"),
    (check_masked_loss, lambda x, y: F.cross_entropy(x.transpose(1, 2), y.clamp(min=0)), "counted as token 0"),
    (
        check_masked_loss,
        lambda x, y: masked_loss(x, y, lambda losses, masked: (losses.sum(1)[:2] / masked.sum(1)[:2]).mean()),
        "Each text counts alike",
    ),
    (check_masked_loss, lambda x, y: masked_loss(x, y, lambda losses, masked: losses.sum() / 3), "number of texts"),
    (check_masked_loss, lambda x, y: -masked_loss(x, y), "sign is wrong"),
    (check_token_f1, lambda predicted, right: float(predicted == right), "exact match"),
    (check_token_f1, lambda p, r: token_f1(p, r, mean=lambda precision, recall: precision), "the precision alone"),
    (check_token_f1, lambda p, r: token_f1(p, r, mean=lambda precision, recall: recall), "the recall alone"),
    (check_token_f1, lambda p, r: token_f1(p, r, mean=lambda one, other: (one + other) / 2), "arithmetic mean"),
    (
        check_token_f1,
        lambda p, r: sum((Counter(p) & Counter(r)).values()) / sum((Counter(p) | Counter(r)).values()),
        "all tokens of either side",
    ),
    (check_token_f1, lambda p, r: token_f1([*{*p}], [*{*r}]), "twice are counted once"),
    (
        check_token_f1,
        lambda p, r: token_f1(p, r, lambda one, other: sum(token in other for token in one)),
        "more often than the other side has it",
    ),
    (check_token_f1, lambda p, r: token_f1(p, r) if p and r else 0.0, "Two empty answers"),
    (check_token_f1, lambda p, r: token_f1(p, r) if p and r else 1.0, "Where only one side has an answer"),
    (check_token_f1, lambda p, r: token_f1(p, r) or float(bool(p) and bool(r)), "share no token"),
    (check_best_span, ends_apart, "each by itself"),
    (check_best_span, lambda s, e: ends_apart(s, e, lambda first, last: sorted((first, last))), "are exchanged where"),
    (
        check_best_span,
        lambda s, e: (int(s.argmax()), int(s.argmax()) + int(e[s.argmax() :].argmax())),
        "best start is kept",
    ),
    (check_best_span, lambda s, e: best_span(s, e, more=1), "at least two tokens"),
    (check_best_span, lambda s, e: best_span(s, e, first=0), "begins at position 0"),
    (check_best_span, lambda s, e: best_span(s, e, none=False), "always an answer"),
    (check_masked_softmax, lambda s, mask: s.masked_fill(mask, -math.inf).softmax(-1), "mask is inverted"),
    (check_masked_softmax, lambda s, mask: s.softmax(-1), "mask is ignored"),
    (check_masked_softmax, lambda s, mask: s.masked_fill(~mask, -math.inf).softmax(-1), "nowhere gets NaN"),
    (check_masked_softmax, lambda s, mask: s.masked_fill(~mask, -1e9).softmax(-1), "gets equal weights"),
    (check_masked_softmax, lambda s, mask: (s - 1e4 * ~mask).softmax(-1), "attends as without a mask"),
    (check_masked_softmax, lambda s, mask: s.softmax(-1) * mask, "applied after the softmax"),
    (check_masked_softmax, lambda s, mask: (s * mask).softmax(-1), "multiplied by the mask"),
    (check_masked_softmax, lambda s, mask: s.masked_fill(~mask, -math.inf).softmax(-2), "over the queries"),
    (check_masked_softmax, masked_softmax_by_addition, "nowhere is NaN, for its softmax is"),
    (
        check_masked_softmax,
        lambda s, mask: masked_softmax_by_addition(s, mask, lambda w, m: torch.where(m, w, 0.0)),
        "nowhere is NaN, for its softmax is",
    ),
    (check_masked_softmax, lambda s, mask: masked_softmax(s.detach(), mask), "carry no gradient"),
    (check_permutation_gap, shown_in_permutation_gap(output=lambda y, order: y), "output for x is not permuted"),
    (check_permutation_gap, shown_in_permutation_gap(permuted=lambda x, order: x), "input is not permuted"),
    (
        check_permutation_gap,
        lambda layer, x, order: (layer(x[:, order])[:, order.argsort()] - layer(x)[:, order]).abs().max(),
        "put back in order and that for x is permuted",
    ),
    (
        check_permutation_gap,
        shown_in_permutation_gap(output=lambda y, order: y[:, order.argsort()]),
        "by the inverse of order",
    ),
    (
        check_permutation_gap,
        shown_in_permutation_gap(permuted=lambda x, order: x[order], output=lambda y, order: y[order]),
        "texts are permuted",
    ),
    (
        check_permutation_gap,
        shown_in_permutation_gap(permuted=lambda x, order: x[..., order], output=lambda y, order: y[..., order]),
        "features are permuted",
    ),
    (check_permutation_gap, shown_in_permutation_gap(reduce=torch.max), "differences keep their signs"),
    (check_permutation_gap, shown_in_permutation_gap(reduce=lambda d: d.abs().mean()), "mean difference is returned"),
    (check_permutation_gap, shown_in_permutation_gap(reduce=lambda d: d.abs().sum()), "differences are summed"),
    (check_permutation_gap, shown_in_permutation_gap(reduce=torch.norm), "norm of the differences"),
    (check_linear_attention, F.scaled_dot_product_attention, "This is softmax attention: "),
    (check_linear_attention, lambda q, k, v: (q @ k.mT).softmax(-1) @ v, "softmax attention, not even scaled"),
    (check_linear_attention, shown_in_linear(of_query=F.elu, of_key=F.elu), "The 1 is missing"),
    (check_linear_attention, shown_in_linear(of_query=F.relu, of_key=F.relu), "phi is the ReLU"),
    (check_linear_attention, shown_in_linear(of_query=torch.clone, of_key=torch.clone), "phi is missing"),
    (check_linear_attention, shown_in_linear(of_key=torch.clone), "of the queries alone"),
    (check_linear_attention, shown_in_linear(of_query=torch.clone), "of the keys alone"),
    (check_linear_attention, shown_in_linear(of_query=lambda x: phi(x / x.size(-1) ** 0.5)), "has no scale"),
    (check_linear_attention, shown_in_linear(normaliser=lambda q, k: torch.ones_like(q[..., 0])), "are not divided"),
    (
        check_linear_attention,
        shown_in_linear(normaliser=lambda q, k: torch.full_like(q[..., 0], k.size(2))),
        "by the number of keys",
    ),
    (check_linear_attention, lambda q, k, v: linear_by_weights(q, k, v, dim=-2), "sum to 1 over the queries"),
    (check_linear_attention, lambda q, k, v: linear_by_weights(q, k, v, seen=torch.tril), "up to its own place"),
    (check_linear_attention, linear_by_weights, "an entry is formed for each query and key"),
    (check_multiply_adds, lambda *a: multiply_adds(*a, scores=0), "Scores and weighted sum are forgotten"),
    (check_multiply_adds, lambda *a: multiply_adds(*a, scores=1), "The weighted sum (or the scores)"),
    (check_multiply_adds, lambda n, d, *a: round(multiply_adds(n, d, *a, scores=2 / d)), "counted as one multiply-add"),
    (check_multiply_adds, lambda *a: multiply_adds(*a, projections=3), "a fourth, of the output"),
    (check_multiply_adds, lambda *a: multiply_adds(*a, maps=1), "One of the feed-forward maps"),
    (
        check_multiply_adds,
        lambda n, d, d_ff, layers: layers * (4 * d * d + 2 * n * n * d + 2 * d * d_ff),
        "multiply by length",
    ),
    (check_multiply_adds, lambda n, d, d_ff, layers: multiply_adds(n, d, d_ff, 1), "num_layers is ignored"),
    (check_multiply_adds, lambda *a: 2 * multiply_adds(*a), "count pairs"),
    (check_multiply_adds, lambda *a: 3 * multiply_adds(*a), "backward pass"),
]


SAME_VALUES = {"The mask holds numbers: make it bool, True = may attend."}  # but another dtype than the right mask


def message(check, f):
    with pytest.raises(AssertionError) as error:
        check(f)
    return str(error.value)


def names(values):
    return [f"{check.__name__}-{f}" if isinstance(f, str) else check.__name__ for check, f in values]


@pytest.mark.parametrize(("check", "right"), RIGHT, ids=names((check, 0) for check, _ in RIGHT))
def test_a_right_attempt_passes_however_it_is_written(check, right, capsys):
    assert check(right) is None
    out = capsys.readouterr().out
    assert out.startswith("Right: ")
    assert out.endswith(".\n")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("check", "wrong", "phrase"), MISTAKES, ids=names((check, phrase) for check, _, phrase in MISTAKES)
)
def test_each_mistake_is_named_in_one_sentence(check, wrong, phrase, capsys):
    said = message(check, wrong)
    assert phrase in said
    assert said.endswith(".")
    assert "\n" not in said
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_knows_several_mistakes(check):
    assert Counter(check for check, _, _ in MISTAKES)[check] >= 4


@pytest.fixture
def compared(monkeypatch):
    """Record what the checks compare with, by the running of a right attempt."""
    calls, compare = [], comparison.compare

    def recording(what, got, expected, mistakes, *args, **kwargs):
        calls.append((expected, mistakes))
        compare(what, got, expected, mistakes, *args, **kwargs)

    chapters = {check.__module__.rpartition(".")[2] for check in CHECKS}
    for chapter in (getattr(exercises, name) for name in chapters):
        monkeypatch.setattr(chapter, "compare", recording)
    return calls


@pytest.mark.parametrize("check", CHECKS)
def test_no_two_mistakes_look_alike(check, compared):
    check(dict(RIGHT)[check])
    assert compared
    for expected, mistakes in compared:
        results = [expected, *(wrong for said, wrong in mistakes.items() if said not in SAME_VALUES)]
        for one, other in itertools.combinations(results, 2):
            assert one is other or not comparison.is_same(one, other, 1e-2)


@pytest.mark.parametrize("check", CHECKS)
def test_every_sentence_of_a_check_is_seen_in_a_test(check, compared):
    check(dict(RIGHT)[check])
    sentences = {sentence for _, mistakes in compared for sentence in mistakes}
    phrases = [phrase for its_check, _, phrase in MISTAKES if its_check is check]
    assert [sentence for sentence in sentences if not any(phrase in sentence for phrase in phrases)] == []


@pytest.mark.parametrize("check", CHECKS)
def test_the_global_generator_is_left_alone_and_the_same_is_tried_every_time(check, compared):
    @torch.random.fork_rng(devices=[])
    def right(*args):  # which may draw numbers itself
        return dict(RIGHT)[check](*args)

    state = torch.get_rng_state()
    check(right)
    assert torch.equal(torch.get_rng_state(), state)
    once = list(compared)
    torch.manual_seed(1)
    check(right)
    for (one, _), (other, _) in zip(once, compared[len(once) :], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("check", CHECKS)
def test_none_is_a_missing_return(check):
    assert message(check, lambda *args: None) == "f returned None: it has no return yet."


@pytest.mark.parametrize("check", CHECKS)
def test_another_type_is_named(check):
    assert message(check, lambda *args: "weights").startswith("f returned type str")


@pytest.mark.parametrize("check", CHECKS)
def test_what_the_attempt_raises_comes_through(check):
    def attempt(*args):
        raise NotImplementedError("write me")

    with pytest.raises(NotImplementedError, match="write me"):
        check(attempt)


@pytest.mark.parametrize(
    ("check", "wrong", "first"),
    [
        (check_softmax, lambda scores: softmax(scores, 0, lambda scores: 0), "over the first axis"),
        (
            check_attention,
            lambda query, key, value, mask=None: attention(
                query, key, value, None if mask is None else ~mask, lambda query, key: 1
            ),
            "not scaled",
        ),
        (
            check_attention,
            lambda query, key, value, mask=None: attention(
                query, key, value, None if mask is None else ~mask, nowhere=None
            ),
            "mask is inverted",
        ),
        (check_padding_mask, lambda ids, pad_id=0: ids == 0, "f returned shape (3, 5)"),
        (check_padding_mask, lambda ids, pad_id=0: ~padding(ids), "inverted"),
        (check_causal_mask, lambda length: 1 - causal(length).int(), "inverted"),
        (check_rotary, lambda x, offset=0: rotary(x, sign=-1), "the wrong way"),
        (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, bias, 0, correction=1), "d - 1"),
        (check_layer_norm, lambda x, gain, bias, eps=1e-5: layer_norm(x, gain, 0, 0), "bias is not applied"),
    ],
)
def test_of_two_mistakes_the_first_is_named(check, wrong, first):
    assert first in message(check, wrong)


@pytest.mark.parametrize(
    ("check", "wrong", "sentence"),
    [
        (
            check_softmax,
            lambda scores: scores.softmax(-1)[0],
            "f returned shape (3, 4) for the weights; expected (2, 3, 4).",
        ),
        (
            check_softmax,
            lambda scores: scores.softmax(-1).float(),
            "f returned torch.float32 for the weights; expected torch.float64.",
        ),
        (
            check_softmax,
            lambda scores: scores.softmax(-1).tolist(),
            "f returned type list for the weights; expected a tensor of shape (2, 3, 4).",
        ),
        (check_attention, lambda q, k, v, mask=None: attention(q, k, v)[0], "f returned type Tensor; expected a pair"),
        (check_attention, lambda q, k, v, mask=None: [q, k, v], "f returned type list of 3; expected a pair"),
        (
            check_attention,
            lambda q, k, v, mask=None: (attention(q, k, v)[0], None),
            "f returned None for the weights; expected a tensor of shape (2, 3, 4, 6).",
        ),
        (
            check_causal_mask,
            lambda length: torch.ones(2, length, length).tril().bool(),
            "f returned shape (2, 5, 5) for the mask; expected (5, 5).",
        ),
        (
            check_padding_mask,
            lambda ids, pad_id=0: padding(ids, pad_id).expand(-1, 4, -1, -1),
            "f returned shape (3, 4, 1, 5) for the mask; expected (3, 1, 5, 5).",
        ),
        (
            check_positions,
            lambda length, d_model: positions(length, d_model).long(),
            "f returned torch.int64 for the table; expected torch.float32.",
        ),
        (check_parameter_count, lambda d, f: 1.0, "f returned type float; expected a number, int."),
        (
            check_linear_attention,
            lambda q, k, v: linear(q, k, v)[0],
            "f returned shape (3, 5, 4) for the output; expected (2, 3, 5, 4).",
        ),
        (check_multiply_adds, lambda *a: 1.0, "f returned type float; expected a number, int."),
        (check_pack, lambda x, tokens: (x[tokens][None], None), "f returned None for the lengths; expected a tensor"),
        (check_ratio, lambda ours, theirs: theirs, "f returned type list; expected a number, float."),
        (check_learning_rate, lambda step, d, w: "1e-3", "f returned type str; expected a number, float."),
        (check_mean_loss, lambda parts: torch.ones(2), "f returned type Tensor; expected a number, float."),
        (
            check_log_count_ratio,
            lambda p, q, alpha=1.0: log_count_ratio(p, q, alpha).tolist(),
            "f returned type list for the ratios; expected a tensor of shape (5,).",
        ),
        (
            check_deletion,
            lambda model, ids: deletion(model, ids)[:, None],
            "f returned shape (5, 1) for the effects; expected (5,).",
        ),
        (
            check_teacher_forcing,
            lambda ids: (ids[:, :-1], ids[0, 1:]),
            "f returned shape (5,) for the labels; expected (2, 5).",
        ),
        (
            check_teacher_forcing,
            lambda ids: (ids[:, :-1].float(), ids[:, 1:]),
            "f returned torch.float32 for the decoder input; expected torch.int64.",
        ),
        (
            check_masked_softmax,
            lambda s, mask: masked_softmax(s, mask)[0],
            "f returned shape (3, 4) for the weights; expected (2, 3, 4).",
        ),
    ],
)
def test_another_kind_of_result_is_named_with_what_was_expected(check, wrong, sentence):
    assert message(check, wrong).startswith(sentence)


@pytest.mark.parametrize(
    ("check", "wrong", "sentence"),
    [
        (check_parameter_count, lambda d, f: 7, "f returned 7 for the number of parameters; expected 458."),
        (
            check_learning_rate,
            lambda step, d, w: learning_rate(step, d, w) + (step == 9),
            "f returned 1.111 for the rates of steps 1, 2, 4, 9 and 16 with d_model=9 and warmup=4 at [3], "
            "the first entry that differs; expected 0.1111.",
        ),
        (
            check_positions,
            lambda length, d_model: positions(length, d_model) * torch.tensor([1.0, 1, 1, 1, 1, -1]),
            "f returned -1 for the table at [0, 5], the first entry that differs; expected 1.",
        ),
        (
            check_rotary,
            lambda x, offset=0: rotary(x, 2 * offset),
            "for the turned x with offset=3 at [0, 0, 0, 0], the first entry that differs; expected ",
        ),
        (
            check_attention,
            lambda q, k, v, mask=None: (attention(q, k, v, mask)[0], attention(q, k, v, mask)[1] + 1),
            "for the weights at [0, 0, 0, 0], the first entry that differs; expected ",
        ),
        (
            check_teacher_forcing,
            lambda ids: (ids[:, :-1], ids[:, 1:].flip(1)),
            "f returned 0 for the labels at [0, 0], the first entry that differs; expected 7.",
        ),
        (
            check_mean_pooling,
            lambda x, mask: mean_pooling(x, mask) * math.nan,
            "f returned nan for the means at [0, 0]",
        ),
        (check_causal_mask, lambda length: causal(length).flip(1), "f returned 0 for the mask at [0, 0]"),
        (
            check_log_count_ratio,
            lambda p, q, alpha=1.0: log_count_ratio(p, q, alpha) * torch.tensor([1.0, 1, 2, 1, 1]),
            "f returned 1.775 for the ratios at [2], the first entry that differs; expected 0.8873.",  # log(68 / 28)
        ),
        (
            check_log_count_ratio,
            lambda p, q, alpha=1.0: log_count_ratio(p, q, alpha**2),
            "for the ratios with alpha=0.5 at [0], the first entry that differs; expected ",
        ),
        (
            check_linear_attention,
            lambda q, k, v: linear(q, k, v) if q.size(2) < 100 else v,
            "for the output of 300 tokens at [0, 0, 0, 0], the first entry that differs; expected ",
        ),
        (check_multiply_adds, lambda *a: 7, "f returned 7 for the number of multiply-adds; expected 9828."),
        (
            check_pack,
            with_lengths(lambda tokens: [2, 5, 2]),
            "f returned 2 for the lengths at [2], the first entry that differs; expected 1.",
        ),
        (check_ratio, lambda ours, theirs: 7.0, "f returned 7 for the ratio; expected 2.25."),
        (check_mean_loss, lambda parts: mean_loss(parts[1:]), "f returned 0.9933 for the mean; expected 1.1."),
        (check_calibration_error, lambda p, y, num_bins=10: 2.0, "f returned 2 for the error; expected "),
        (
            check_calibration_error,
            lambda p, y, num_bins=10: calibration_error(p, y, 2 * num_bins - 10),
            "f returned 0 for the error with num_bins=5; expected ",
        ),
        (
            check_calibration_error,
            lambda p, y, num_bins=10: calibration_error(p, y, num_bins) + 0.25 * (p == 1).any(),
            "for the error with a probability of 1; expected ",
        ),
        (
            check_deletion,
            lambda model, ids: deletion(model, ids) * torch.tensor([1, 1, 1, 2, 1]),
            "f returned 0.5081 for the effects at [3], the first entry that differs; expected ",
        ),
        (
            check_masked_softmax,
            lambda s, mask: masked_softmax(s, mask) + (s - s.detach()),
            "for the gradient of the scores at [0, 0, 0], the first entry that differs; expected ",
        ),
    ],
)
def test_an_unknown_mistake_is_shown_where_it_begins(check, wrong, sentence):
    assert sentence in message(check, wrong)


def test_a_small_difference_is_shown_with_more_digits():
    said = message(check_softmax, lambda scores: scores.softmax(-1) + 1e-8)
    came, wanted = (float(part) for part in (said.split()[2], said.rstrip(".").split()[-1]))
    assert came - wanted == pytest.approx(1e-8, rel=1e-2)


@pytest.mark.parametrize(
    ("check", "right", "passes", "fails"),
    [
        (check_softmax, softmax, 5e-10, 2e-9),
        (check_recurrence, recurrence, 5e-7, 2e-6),
        (check_positions, positions, 5e-6, 2e-5),
        (check_shift_matrix, shift_matrix, 5e-6, 2e-5),
        (check_rotary, rotary, 5e-6, 2e-5),
        (check_layer_norm, layer_norm, 5e-10, 2e-9),
        (check_learning_rate, learning_rate, 5e-7, 2e-6),
        (check_log_count_ratio, log_count_ratio, 5e-6, 2e-5),
        (check_mean_loss, mean_loss, 5e-7, 2e-6),
        (check_calibration_error, calibration_error_by_histogram, 5e-7, 2e-6),
        (check_deletion, deletion, 5e-7, 2e-6),
        (check_ngram_lengths, ngram_lengths, 5e-7, 2e-6),
        (check_masked_loss, masked_loss, 5e-7, 2e-6),
        (check_masked_softmax, masked_softmax, 5e-10, 2e-9),
        (check_permutation_gap, permutation_gap, 5e-7, 2e-6),
        (check_linear_attention, linear, 5e-6, 2e-5),
    ],
)
def test_values_may_be_off_by_rounding_alone(check, right, passes, fails):
    check(lambda *args: right(*args) + passes)
    assert re.match(r"f returned \S+ for the ", message(check, lambda *args: right(*args) + fails))


@pytest.mark.parametrize(
    ("check", "right"),
    [(check_softmax, softmax), (check_split_heads, split_heads), (check_multi_head_attention, multi_head)],
)
def test_a_result_that_carries_gradients_is_compared_by_its_values(check, right):
    check(lambda *args: right(args[0].requires_grad_(), *args[1:]))


def test_every_public_function_of_the_module_is_a_check_that_takes_f():
    public = [value for value in vars(exercises).values() if inspect.isfunction(value)]
    assert public == CHECKS
    assert all(list(inspect.signature(f).parameters) == ["f"] for f in public)
