"""Packing: the tokens of a padded batch one after the other, so that nothing is computed for padding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.checks import check_device, check_mask

FEWEST_A_TEXT = 2**10
"""On a CPU less padding a text, in elements (positions times width), costs less than the calls for each text."""

FEWEST_ON_GPU = {torch.float32: 3 * 2**18, torch.bfloat16: 2**22, torch.float16: 2**22}
"""On an H100 less padding in the whole batch, by dtype, costs less than waiting for the lengths."""

_padding_is_kept = ContextVar("padding_is_kept", default=False)


@contextmanager
def keep_padding() -> Iterator[None]:
    """Let models compute on padded batches as they are, for whoever looks into their layers.

    It serves ``torch.func.vmap`` and fake tensors too, which cannot be asked for lengths, and an encoder compiled by
    itself, which would be compiled anew for each batch's.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9)).eval()
        >>> ids, seen = pad_batch([[5] * 99, [8]]), []
        >>> _ = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2]))
        >>> packed = model(ids)
        >>> with keep_padding():
        ...     padded = model(ids)
        >>> [tuple(shape) for shape in seen], torch.allclose(packed, padded, atol=1e-6)
        ([(1, 100), (2, 99)], True)
    """
    token = _padding_is_kept.set(True)
    try:
        yield
    finally:
        _padding_is_kept.reset(token)


class Packing:
    """Where the tokens of a padded batch stand, to pack them one after the other and to put them back.

    A packed batch is a batch of 1: ``(1, tokens, width)``. What treats each position alone, such as a feed-forward
    network, takes it as it is; a `MultiHeadAttention` is told the ``lengths`` of the sequences in it.

    Args:
        tokens: Bool, ``(batch, length)``, ``True`` where a token stands.

    Raises:
        TypeError: If ``tokens`` is not bool.
        ValueError: If it is not two-dimensional.

    Example:
        >>> packing = Packing(torch.tensor([[True, True, False], [True, False, False]]))
        >>> x = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [9.0], [9.0]]])
        >>> packing.lengths, packing.pack(x).tolist()
        ([2, 1], [[[1.0], [2.0], [3.0]]])
        >>> packing.unpack(packing.pack(x)).squeeze(-1).tolist()
        [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    """

    lengths: list[int]
    """The number of tokens of each sequence that has any."""

    def __init__(self, tokens: Bool[Tensor, "batch length"]) -> None:
        check_mask(tokens, "tokens", "a token stands")
        if tokens.dim() != 2:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; expected (batch, length)")
        self.lengths = [length for length in tokens.sum(dim=1).tolist() if length]
        self._shape = tokens.shape
        self._places = tokens.flatten().nonzero().squeeze(1)

    def pack(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "1 tokens width"]:
        """Take the tokens alone, one sequence after the other.

        Args:
            x: ``(batch, length, width)``.

        Returns:
            ``(1, tokens, width)``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        _check_shape(x, *self._shape)
        return x.flatten(0, 1).index_select(0, self._places).unsqueeze(0)

    def unpack(self, x: Float[Tensor, "1 tokens width"]) -> Float[Tensor, "batch length width"]:
        """Put the tokens back where they stood, with zeros for padding.

        Args:
            x: ``(1, tokens, width)``, of any width.

        Returns:
            ``(batch, length, width)``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        _check_shape(x, 1, len(self._places))
        padded = x.new_zeros(self._shape.numel(), x.size(-1))
        return padded.index_copy(0, self._places, x.squeeze(0)).unflatten(0, self._shape)


def encode_tokens(
    encoder: Callable[..., Tensor],
    x: Float[Tensor, "batch length d_model"],
    tokens: Bool[Tensor, "batch length"],
    mask: Tensor | None = None,
    **options: Tensor | None,
) -> Float[Tensor, "batch length d_model"]:
    """Run an encoder on the tokens of a padded batch, which attend to each other alone.

    Padding that follows the tokens of its sequence is left out, and zeros come out there. The batch stays padded, and
    what comes out at padding is the encoder's, where there is little padding (less than ``FEWEST_A_TEXT`` times its
    sequences, on a GPU ``FEWEST_ON_GPU``); where a token follows padding (packed, those around it would come closer);
    while ``torch.compile`` traces or a CUDA graph is captured; under `keep_padding`; and on a GPU that is not NVIDIA's,
    in a dtype beside ``FEWEST_ON_GPU``, or with a mask or an option, which the kernel for packed sequences does not
    take.

    Args:
        encoder: An `Encoder`, or what is called like one.
        x: ``(batch, length, d_model)``.
        tokens: Bool, ``(batch, length)``, ``True`` where a token stands.
        mask: What hides tokens from each other besides, the same for each sequence: broadcastable to ``(heads, length,
            length)``.
        **options: What the encoder takes besides, the same for each sequence.

    Returns:
        A tensor of the shape of ``x``.

    Raises:
        TypeError: If ``tokens`` is not bool.
        ValueError: If its shape or its device is not that of ``x``.

    Example:
        >>> encoder = Encoder(num_layers=1, d_model=16, num_heads=2, d_ff=32)
        >>> x, tokens = torch.randn(2, 200, 16), torch.ones(2, 200, dtype=torch.bool)
        >>> tokens[1, 1:] = False
        >>> y = encode_tokens(encoder, x, tokens)
        >>> torch.allclose(y[1, :1], encoder(x[1:, :1])[0], atol=1e-6), y[1, 1:].any()
        (True, tensor(False))
    """
    check_mask(tokens, "tokens", "a token stands")
    if tokens.shape != x.shape[:2]:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; expected {tuple(x.shape[:2])}, that of x")
    check_device("tokens", tokens, x, "x")
    fewest = _fewest_to_leave_out(x, plain=mask is None and all(option is None for option in options.values()))
    if fewest is not None:
        padding = (tokens.numel() - int(tokens.sum())) * x.size(-1)
        if not padding:
            return encoder(x, mask, **options)
        if fewest <= padding < x.numel() and (tokens[:, :-1] >= tokens[:, 1:]).all():
            packing = Packing(tokens)
            return packing.unpack(encoder(packing.pack(x), mask, **options, lengths=packing.lengths))
    keys = tokens[:, None, None, :]
    return encoder(x, keys if mask is None else keys & mask, **options)


def _fewest_to_leave_out(x: Tensor, *, plain: bool) -> int | None:
    """Return from how many elements of padding on it is left out; ``None`` = never."""
    if torch.compiler.is_compiling() or _padding_is_kept.get():
        return None
    if x.device.type == "cpu":
        return FEWEST_A_TEXT * len(x)
    on_nvidia = x.is_cuda and torch.version.hip is None
    if not plain or not on_nvidia or torch.cuda.is_current_stream_capturing():
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    fewest = FEWEST_ON_GPU.get(dtype)
    return fewest if fewest is not None and x.numel() >= fewest else None


def _check_shape(x: Tensor, batch: int, length: int) -> None:
    if x.dim() != 3 or x.shape[:2] != (batch, length):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected ({batch}, {length}, width)")
