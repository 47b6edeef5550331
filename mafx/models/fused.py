"""Kernels of our own for NVIDIA cards: what neither cuDNN nor XLA computes in one pass over memory.

They are written in Pallas and compiled by Triton, for compute capability 8.0 and above. None has a gradient. Sides of
blocks are powers of two. Where an array ends before its last block, loads and stores are masked.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

SMALLEST_SIDE = 16  # of the factors of a matrix product
FRAME_ROWS = 64  # frames times positions that a block of `frame_attention` takes
GEGLU_ROWS, GEGLU_COLUMNS, GEGLU_DEPTH = 128, 64, 64  # of a block's result, and of the products summed at once
WIDE_HEAD = 128  # wider heads get half as many rows, so that all fits into the registers
QUERIES, KEYS = 64, 32  # that a block of `two_part_attention` takes at once
KeysValues = tuple[jax.Array, jax.Array]
MASKED = -1e30  # a score whose exponential is 0; with -inf, a row of them would be nan


def _power_of_two(n: int) -> int:
    """The smallest power of two from n on that can be a side of a matrix product."""
    return max(SMALLEST_SIDE, 2 ** math.ceil(math.log2(n)))


# -- Attention among frames


def frame_attention(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v along frames, at every position by itself; all are `b f n a d`.

    A block takes a few positions of one head. It multiplies all their queries with all their keys, which tensor cores
    do in no time, and masks the scores of different positions.
    """
    b, f, n, a, d = q.shape
    frames = _power_of_two(f)
    width = _power_of_two(d)
    positions = max(1, (FRAME_ROWS if width <= WIDE_HEAD else FRAME_ROWS // 2) // frames)
    block = pl.BlockSpec((None, frames, positions, None, width), lambda i, head, example: (example, 0, i, head, 0))
    products = 2 * 2 * b * n * a * f * f * d
    return pl.pallas_call(
        functools.partial(_attend_frames, sides=(f, n, d)),
        grid=(pl.cdiv(n, positions), a, b),
        in_specs=[block] * 3,
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        cost_estimate=_cost(products, b * n * a * f * f, q, k, v, q),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="frame_attention",
    )(q, k, v)


def _attend_frames(q_ref, k_ref, v_ref, out_ref, *, sides: tuple[int, int, int]) -> None:
    f, n, d = sides
    shape = q_ref.shape
    _, positions, width = shape
    frame, position, channel = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(3))
    inside = (frame < f) & (pl.program_id(0) * positions + position < n) & (channel < d)
    q, k, v = (plt.load(ref, mask=inside, other=0).reshape(-1, width) for ref in (q_ref, k_ref, v_ref))
    scores = plt.dot(q, k.T)
    query, key = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in range(2))
    visible = (query % positions == key % positions) & (key // positions < f)
    scores = jnp.where(visible, scores * d**-0.5, MASKED)
    weights = jnp.exp(scores - scores.max(1, keepdims=True))
    out = plt.dot(weights.astype(v.dtype), v) / weights.sum(1, keepdims=True)
    plt.store(out_ref, out.astype(out_ref.dtype).reshape(shape), mask=inside)


# -- Attention to a frame's own keys and to those that all frames share


def two_part_attention(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, interpret: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v over the keys of a frame, `b f k a d`, followed by those of all frames, `b m a d`.

    Either may be None. Nothing is joined or repeated. The softmax goes along blocks of keys (*FlashAttention*, arXiv
    2205.14135).

    Returns: `b f n a d`.
    """
    b, f, n, a, d = q.shape
    slices = _width_slices(d)
    width = slices[-1].stop  # at least d

    def frame_block(rows: int, moves: bool) -> pl.BlockSpec:
        """Rows of a frame's tokens: the block that moves along, or all of them."""
        return pl.BlockSpec(
            (None, None, rows, None, width), lambda i, head, r: (r // f, r % f, i if moves else 0, head, 0)
        )

    arrays, specs, key_counts = [q], [frame_block(QUERIES, True)], []
    if own is not None:
        key_counts.append(own[0].shape[2])
        arrays += own
        specs += [frame_block(_round_up(key_counts[-1], KEYS), False)] * 2
    if shared is not None:
        key_counts.append(shared[0].shape[1])
        arrays += shared
        block = (None, _round_up(key_counts[-1], KEYS), None, width)
        specs += [pl.BlockSpec(block, lambda i, head, r: (r // f, 0, head, 0))] * 2
    scores = b * f * n * a * sum(key_counts)
    return pl.pallas_call(
        functools.partial(_attend_blocks, slices=slices, key_counts=key_counts, n=n, d=d),
        grid=(pl.cdiv(n, QUERIES), a, b * f),
        in_specs=specs,
        out_specs=specs[0],
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        cost_estimate=_cost(4 * scores * d, scores, q, *arrays),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="two_part_attention",
    )(*arrays)


def _attend_blocks(q_ref, *refs, slices: list[slice], key_counts: list[int], n: int, d: int) -> None:
    *key_value_refs, out_ref = refs

    def blocks(ref, start, rows: int, end) -> Iterator[tuple[Any, jax.Array]]:
        """Rows from `start` on in slices of channels: where they lie, and what of them is before the end of either."""
        inside = (start + jnp.arange(rows) < end)[:, None]
        for part in slices:
            width = part.stop - part.start
            mask = inside & (part.start + jnp.arange(width) < d)[None]
            yield ref.at[pl.ds(start, rows), pl.ds(part.start, width)], mask

    def load(ref, start, rows: int, end) -> list[jax.Array]:
        return [plt.load(at, mask=mask, other=0) for at, mask in blocks(ref, start, rows, end)]

    first = pl.program_id(0) * QUERIES
    q = load(q_ref, 0, QUERIES, n - first)

    def attend(count: int, k_ref, v_ref, i, carry):
        largest, total, sums = carry
        k, v = (load(ref, i * KEYS, KEYS, count) for ref in (k_ref, v_ref))
        scores = sum(plt.dot(q_part, k_part.T) for q_part, k_part in zip(q, k, strict=True)) * d**-0.5
        scores = jnp.where((i * KEYS + jnp.arange(KEYS) < count)[None], scores, MASKED)
        new_largest = jnp.maximum(largest, scores.max(1))
        kept, weights = jnp.exp(largest - new_largest), jnp.exp(scores - new_largest[:, None])
        rounded = weights.astype(q_ref.dtype)
        sums = tuple(x * kept[:, None] + plt.dot(rounded, v_part) for x, v_part in zip(sums, v, strict=True))
        return new_largest, total * kept + weights.sum(1), sums

    zeros = tuple(jnp.zeros((QUERIES, part.stop - part.start), jnp.float32) for part in slices)
    carry = jnp.full(QUERIES, MASKED, jnp.float32), jnp.zeros(QUERIES, jnp.float32), zeros
    for i, count in enumerate(key_counts):
        step = functools.partial(attend, count, *key_value_refs[2 * i : 2 * i + 2])
        carry = jax.lax.fori_loop(0, pl.cdiv(count, KEYS), step, carry)
    _, total, sums = carry
    for (at, mask), x in zip(blocks(out_ref, 0, QUERIES, n - first), sums, strict=True):
        plt.store(at, (x / total[:, None]).astype(out_ref.dtype), mask=mask)


def _width_slices(d: int) -> list[slice]:
    """The channels of a head in slices whose widths are powers of two: 160 are 128 + 32.

    Padding the whole head to 256 would cost up to half of all products.
    """
    slices, start = [], 0
    while start < d:
        stop = start + max(SMALLEST_SIDE, 2 ** int(math.log2(d - start)))
        slices.append(slice(start, stop))
        start = stop
    return slices


# -- GEGLU


def geglu(x: jax.Array, kernel: jax.Array, bias: jax.Array, interpret: bool = False) -> jax.Array:
    """y gelu(gate), where y and gate are the halves of x kernel + bias. The halves never reach the memory.

    Args:
      x: Tokens `... c`.
      kernel: `c 2o`, the columns of y before those of the gate. GEGLU_COLUMNS divides `o`.
      bias: `2o`.
      interpret: Whether Pallas' interpreter stands in for the card.

    Returns: `... o`.
    """
    tokens = x.reshape(-1, x.shape[-1])
    (rows, c), o = tokens.shape, kernel.shape[-1] // 2
    gate = o // GEGLU_COLUMNS  # blocks of columns before the gate
    halves = [
        pl.BlockSpec((_round_up(c, GEGLU_DEPTH), GEGLU_COLUMNS), lambda column, row, shift=shift: (0, column + shift))
        for shift in (0, gate)
    ]
    biases = [pl.BlockSpec((GEGLU_COLUMNS,), lambda column, row, shift=shift: (column + shift,)) for shift in (0, gate)]
    out = pl.pallas_call(
        functools.partial(_multiply_and_gate, rows=rows, c=c),
        grid=(o // GEGLU_COLUMNS, pl.cdiv(rows, GEGLU_ROWS)),
        in_specs=[
            pl.BlockSpec((GEGLU_ROWS, _round_up(c, GEGLU_DEPTH)), lambda column, row: (row, 0)),
            *halves,
            *biases,
        ],
        out_specs=pl.BlockSpec((GEGLU_ROWS, GEGLU_COLUMNS), lambda column, row: (row, column)),
        out_shape=jax.ShapeDtypeStruct((rows, o), x.dtype),
        cost_estimate=_cost(4 * rows * c * o, rows * o, tokens, kernel, jax.ShapeDtypeStruct((rows, o), x.dtype)),
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="geglu",
    )(tokens, kernel, kernel, bias, bias)
    return out.reshape(*x.shape[:-1], o)


def _multiply_and_gate(x_ref, y_ref, gate_ref, y_bias_ref, gate_bias_ref, out_ref, *, rows: int, c: int) -> None:
    first = pl.program_id(1) * GEGLU_ROWS
    row_inside = (first + jnp.arange(GEGLU_ROWS) < rows)[:, None]

    def multiply(i, sums):
        start = i * GEGLU_DEPTH
        inside = start + jnp.arange(GEGLU_DEPTH) < c
        depth = pl.ds(start, GEGLU_DEPTH)
        x = plt.load(x_ref.at[:, depth], mask=row_inside & inside[None], other=0)
        factors = [plt.load(ref.at[depth, :], mask=inside[:, None], other=0) for ref in (y_ref, gate_ref)]
        return tuple(total + plt.dot(x, factor) for total, factor in zip(sums, factors, strict=True))

    zeros = jnp.zeros((GEGLU_ROWS, GEGLU_COLUMNS), jnp.float32)
    sums = jax.lax.fori_loop(0, pl.cdiv(c, GEGLU_DEPTH), multiply, (zeros, zeros))
    biases = (plt.load(ref).astype(jnp.float32) for ref in (y_bias_ref, gate_bias_ref))
    y, gate = (total + bias[None] for total, bias in zip(sums, biases, strict=True))
    out = y * gate * (1 + _erf(gate * 2**-0.5)) / 2
    plt.store(out_ref, out.astype(out_ref.dtype), mask=row_inside)


def _erf(x: jax.Array) -> jax.Array:
    """The error function up to 1.5e-7: formula 7.1.26 of Abramowitz and Stegun, since Triton has none."""
    t = 1 / (1 + 0.3275911 * jnp.abs(x))
    polynomial = jnp.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = (polynomial + coefficient) * t
    return jnp.sign(x) * (1 - polynomial * jnp.exp(-jnp.square(x)))


# -- What they share


def _round_up(n: int, block: int) -> int:
    return pl.cdiv(n, block) * block


def _cost(flops: int, exponentials: int, *arrays: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=flops, transcendentals=exponentials, bytes_accessed=moved)
