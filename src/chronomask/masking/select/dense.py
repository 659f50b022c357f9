"""The selection of :mod:`chronomask.masking.select.exact` in dense torch operations, for accelerators.

Same steps, same integers, same bits: a test compares the two. Every unit occupies the place of its
first token, so all shapes are [B, T] whatever the text, and nothing here waits for the device.
Sums are of integers and float steps are single IEEE operations, so results do not depend on the
order in which a device adds.
"""

from __future__ import annotations

import numpy as np
import torch

from chronomask import keyed
from chronomask.masking.config import Budget
from chronomask.masking.select.draws import LONGEST, NEWTON_STEPS, ORDER_BITS, TOLERANCE
from chronomask.masking.select.exact import LEVEL_WEIGHTS, RowRandomness, share_ratio
from chronomask.types import send

__all__ = ["levels", "replace", "select"]

_ONE = 2.0**32
_WRAP = 2**32 - 1


def select(
    unit_id: torch.Tensor,
    token_class: torch.Tensor | None,
    weights: torch.Tensor | None,
    ratio: np.ndarray,
    random: RowRandomness,
    each_token: bool = False,
    budget: Budget = "row",
) -> torch.Tensor:
    """Bool [B, T]: the tokens of the chosen units.

    Arguments as for :func:`chronomask.masking.select.exact.select`, the first three as tensors on the
    device; ``ratio`` and ``random`` come from the host.
    """
    device, shape = unit_id.device, unit_id.shape
    key = keyed.torch_bits(random.keys, shape[1], device)
    if each_token:
        unit_id = torch.where(unit_id >= 0, torch.arange(shape[1], device=device), -1)
    start_multi, start_single = random.start_multi, random.start_single
    if budget == "batch":  # one long row, in which units of different rows differ
        rows = torch.arange(shape[0], device=device)[:, None]
        unit_id = torch.where(unit_id >= 0, unit_id + rows * shape[1], -1).reshape(1, -1)
        token_class = None if token_class is None else token_class.reshape(1, -1)
        key, ratio = key.reshape(1, -1), share_ratio(ratio)[:1]
        start_multi, start_single = start_multi[:1], start_single[:1]
    maskable = unit_id >= 0
    num_maskable = maskable.sum(1)
    if budget == "batch":
        wanted = _host(np.rint(ratio * unit_id.shape[1]), torch.int64, device)
        wanted = torch.minimum(wanted, num_maskable)
        share = wanted / num_maskable.clamp(min=1)
    else:
        share = _host(ratio, torch.float64, device)
        rounding = _host(random.round_budget, torch.int64, device)
        wanted = (_to_units(share) * num_maskable + rounding) >> 32

    unit, size = _units(unit_id, maskable)
    single, multi = size == 1, size > 1
    if token_class is None or weights is None:
        classes = torch.zeros_like(size)
        chance = share[:, None]
        single_counts = single.sum(1, keepdim=True)
    else:
        classes = token_class.to(torch.int64)
        empty = torch.zeros(size.shape[0], weights.shape[0], dtype=torch.int64, device=device)
        single_counts = empty.scatter_add(1, classes, single.to(torch.int64))
        chance = _chances(empty.scatter_add(1, classes, size), weights, share)

    if budget == "none":
        hit = (key < _to_units(chance).gather(1, classes)) & (size > 0)
    else:
        shuffled = key >> (32 - ORDER_BITS)
        shortness = torch.where(multi, LONGEST - size.clamp(max=LONGEST), LONGEST)
        longest_first = (shortness << ORDER_BITS) | shuffled
        start = _host(start_multi, torch.int64, device)
        hit = _systematic(longest_first, multi, classes, chance, start)
        covered = torch.where(hit, size, 0).sum(1)
        longest = torch.where(multi, size, 0).amax(1)
        left = _left_for_single(wanted, covered, longest, single_counts, chance)
        start = _host(start_single, torch.int64, device)
        if token_class is None or weights is None:
            hit |= _smallest(single, (left + start) >> 32, key)
        else:
            shifted = _shift(chance, single_counts, left)
            hit |= _systematic(shuffled, single, classes, shifted, start)
    hit |= (share >= 1.0)[:, None]
    return (hit.gather(1, unit) & maskable).reshape(shape)


def _host(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Per-row numbers from the host, copied without waiting."""
    wide = np.float64 if dtype == torch.float64 else np.int64
    return send(values.astype(wide), device)


def _units(unit_id: torch.Tensor, maskable: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int64 [B, T]: the column of each token's unit's first token, and at that column its size."""
    begins = torch.ones_like(maskable)
    begins[:, 1:] = unit_id[:, 1:] != unit_id[:, :-1]
    column = torch.arange(unit_id.shape[1], device=unit_id.device)
    unit = torch.where(begins, column, 0).cummax(1).values
    size = torch.zeros_like(unit).scatter_add(1, unit, maskable.to(torch.int64))
    return unit, size


def _chances(counts: torch.Tensor, weights: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    counts = counts.to(torch.float64)
    total = counts.sum(1).clamp(min=1.0)
    mean_weight = (counts * weights).sum(1).clamp(min=2.0**-16) / total
    share = ratio.clamp(1e-9, 1 - 1e-9)
    target = (share * total * _ONE).round()
    rate = share / (1 - share) / mean_weight
    for _ in range(NEWTON_STEPS):
        odds = rate[:, None] * weights
        chance = odds / (odds + 1.0)
        missing = target - _weighted_sum(counts, chance)
        missing = torch.where(missing.abs() <= target * TOLERANCE, 0.0, missing)
        slope = _weighted_sum(counts, chance * (1.0 - chance))
        rate = rate * (1.0 + missing / slope.clamp(min=1.0))
    odds = rate[:, None] * weights
    return odds / (odds + 1.0)


def _weighted_sum(counts: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (counts * (values * _ONE).round()).sum(1)


def _to_units(chance: torch.Tensor) -> torch.Tensor:
    """Int64: chances in units of 2⁻³²."""
    return (chance * _ONE).round().to(torch.int64)


def _left_for_single(
    budget: torch.Tensor,
    covered: torch.Tensor,
    longest: torch.Tensor,
    counts: torch.Tensor,
    chance: torch.Tensor,
) -> torch.Tensor:
    expected = _weighted_sum(counts, chance)
    missing = (budget - covered) * _ONE - expected
    room = torch.minimum(expected, counts.sum(1) * _ONE - expected)
    share = (room / ((longest + 1) * _ONE)).clamp(max=1.0)
    return (expected + (share * missing).round()).to(torch.int64)


def _shift(chance: torch.Tensor, counts: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    spread = chance * (1.0 - chance)
    missing = number - _weighted_sum(counts, chance)
    step = missing / _weighted_sum(counts, spread).clamp(min=1.0)
    return (chance + step[:, None] * spread).clamp(0.0, 1.0)


def _systematic(
    order: torch.Tensor,
    taking_part: torch.Tensor,
    classes: torch.Tensor,
    chance: torch.Tensor,
    start: torch.Tensor,
) -> torch.Tensor:
    """Bool [B, T] by column: systematic sampling of the units of bool [B, T] ``taking_part``.

    They are visited by ``order`` int64 [B, T], then by column; ``classes`` int64 [B, T], ``chance`` float64
    [B, C], ``start`` int64 [B] in units of 2⁻³².
    """
    length = order.shape[1]
    column_bits = max(1, (length - 1).bit_length())
    packed = (order << column_bits) | torch.arange(length, device=order.device)
    column = packed.sort(1).values & ((1 << column_bits) - 1)
    own = torch.where(taking_part, _to_units(chance).clamp(max=_WRAP).gather(1, classes), 0)
    in_order = own.gather(1, column)
    total = (in_order.cumsum(1) + start[:, None]) & _WRAP
    return torch.zeros_like(own, dtype=torch.bool).scatter(1, column, total < in_order)


def _smallest(single: torch.Tensor, number: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    position = torch.arange(single.shape[1], device=single.device)
    order = torch.where(single, key, 1 << 32).sort(stable=True, dim=1).indices
    first = (position < number[:, None]).expand_as(order)
    return torch.zeros_like(single).scatter(1, order, first) & single


def levels(unit_id: torch.Tensor, token_weight: torch.Tensor, each_token: bool) -> torch.Tensor:
    """As :func:`chronomask.masking.select.exact.levels`; int64 [B, T]."""
    if each_token:
        unit_id = torch.arange(unit_id.shape[1], device=unit_id.device).expand_as(unit_id)
    unit, size = _units(unit_id, torch.ones_like(unit_id, dtype=torch.bool))
    grid = (token_weight * 2.0**16).round().to(torch.int64)  # whole numbers add up in any order
    total = torch.zeros_like(grid).scatter_add(1, unit, grid)
    mean = (total * 2.0**-16 / size.clamp(min=1)).gather(1, unit)
    between = send(LEVEL_WEIGHTS[:-1] * LEVEL_WEIGHTS[1:], unit_id.device)
    return torch.searchsorted(-between, -(mean * mean), side="left")


def replace(
    input_ids: torch.Tensor,
    selected: torch.Tensor,
    drawn_for: torch.Tensor | None,
    replace_keys: np.ndarray,
    token_keys: np.ndarray,
    bounds: tuple[int, int],
    mask_token_id: int,
    ordinary_ids: torch.Tensor,
) -> torch.Tensor:
    """Int64 [B, T]: what the model sees; ``drawn_for`` gives tokens of a unit one common draw."""
    length, device = input_ids.shape[1], input_ids.device
    draw = keyed.torch_bits(replace_keys, length, device)
    if drawn_for is not None:
        draw = draw.gather(1, drawn_for.clamp(min=0).to(torch.int64))
    bits = keyed.torch_bits(token_keys, length, device)
    random = ordinary_ids[(bits * ordinary_ids.shape[0]) >> 32]
    shown = torch.where(draw < bounds[1], random, input_ids)
    shown = torch.where(draw < bounds[0], mask_token_id, shown)
    return torch.where(selected, shown, input_ids)
