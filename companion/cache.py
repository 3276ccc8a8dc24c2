"""The key-value cache: what attention need not compute again while a model decodes token by token."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn


class _Room(NamedTuple):
    """Room for the keys and values of one self-attention, the first ``length`` positions of it filled."""

    key: Tensor
    value: Tensor
    length: int


class KeyValueCache:
    """Keys and values of earlier calls, so that decoding projects each token once (Shazeer, 2019, arXiv:1911.02150).

    One cache serves a whole model: each attention in it finds its own entry. Self-attention adds the keys and values
    of its call to those before; cross-attention keeps those of its first call, whose memory must not change.

    Example:
        >>> attention, cache = MultiHeadAttention(d_model=16, num_heads=2), KeyValueCache()
        >>> prompt, token = torch.randn(1, 4, 16), torch.randn(1, 1, 16)
        >>> _ = attention(prompt, mask=causal_mask(4), cache=cache)
        >>> step = attention(token, cache=cache).output
        >>> whole = attention(torch.cat([prompt, token], dim=1), mask=causal_mask(5)).output
        >>> cache.length, torch.allclose(step, whole[:, 4:], atol=1e-6)
        (5, True)
    """

    def __init__(self) -> None:
        self._rooms: dict[nn.Module, _Room] = {}
        self._fixed: dict[nn.Module, tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]] = {}

    @property
    def length(self) -> int:
        """The number of positions that self-attention has seen."""
        return max((room.length for room in self._rooms.values()), default=0)

    def length_in(self, attention: nn.Module) -> int:
        """Return the number of positions that one self-attention has seen."""
        return self._rooms[attention].length if attention in self._rooms else 0

    @property
    def num_bytes(self) -> int:
        """The bytes of all keys and values in it, without the room held for more and the memory that was projected."""
        tensors = [x[..., : room.length, :] for room in self._rooms.values() for x in (room.key, room.value)]
        tensors += [x for _, projected in self._fixed.values() for x in projected]
        return sum(x.nbytes for x in tensors)

    def extend(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of ``(batch, heads, length, d)`` to those of earlier calls, and return them all.

        Raises:
            ValueError: If the cache was filled with another batch.
        """
        room = self._rooms.get(attention, _Room(key[..., :0, :], value[..., :0, :], 0))
        if room.key.size(0) != key.size(0):
            raise ValueError(f"query has batch {key.size(0)}; expected {room.key.size(0)}, the cache's")
        end = room.length + key.size(-2)
        room = _Room(_write(room.key, room.length, key), _write(room.value, room.length, value), end)
        self._rooms[attention] = room
        return room.key[..., :end, :], room.value[..., :end, :]

    def once(
        self, attention: nn.Module, key: Tensor, value: Tensor, project: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return the projections of ``key`` and ``value``, computed at the first call.

        Raises:
            ValueError: If they are other tensors than at the first call.
        """
        if attention not in self._fixed:
            self._fixed[attention] = (key, value), project(key, value)
        memory, projected = self._fixed[attention]
        if memory[0] is not key or memory[1] is not value:
            raise ValueError(
                "key and value are other tensors than those that filled the cache; pass the same memory at each call, "
                "or a new KeyValueCache (for self-attention leave both out)"
            )
        return projected

    def reorder(self, rows: Int[Tensor, "rows"]) -> None:
        """Let each row go on from another one, as beam search does; a memory's keys and values stay where they are.

        Args:
            rows: For each row of the next call, the row that it continues, ``(batch,)``.
        """
        self._rooms = {
            attention: _Room(key.index_select(0, rows), value.index_select(0, rows), length)
            for attention, (key, value, length) in self._rooms.items()
        }


def _write(room: Tensor, length: int, x: Tensor) -> Tensor:
    """Return room with ``x`` behind its first ``length`` positions.

    Room that is full moves to twice as much: most steps copy one position instead of all. Where gradients may flow
    nothing is overwritten.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or room.dtype != x.dtype:
        return torch.cat((room[..., :length, :], x), dim=-2)
    end = length + x.size(-2)
    if end > room.size(-2) or room.is_inference() != torch.is_inference_mode_enabled():
        old, room = room, x.new_empty((*x.shape[:-2], 2 * end, x.size(-1)))
        room[..., :length, :] = old[..., :length, :]
    room[..., length:end, :] = x
    return room
