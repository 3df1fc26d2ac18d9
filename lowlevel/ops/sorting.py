"""Tokens' choices of experts as rows in the order of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel import checks, devices

from .routing import MAX_EXPERTS

if TYPE_CHECKING:
    from lowlevel.arrays import Array


def sort_by_expert(
    ids: Array, weights: Array, tokens: Array, experts: Array, row_weights: Array
) -> None:
    """Choice j of token i becomes a row; rows are sorted by expert, and by token within one.

    Parameters
    ----------
    ids : array of int32, (n_tokens, n_expert_used)
        The experts of each token, as `top_k_routing` writes them.
    weights : array of float32, (n_tokens, n_expert_used)
        What their outputs weigh.
    tokens, experts : array of int32, (n_tokens n_expert_used,)
        Written: each row's token and expert.
    row_weights : array of float32, (n_tokens n_expert_used,)
        Written: each row's weight.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit, such as arrays on another device than the CPU (products sort by themselves
        there); nothing has been written.
    IndexError
        An id below 0 or past the 1024 experts that routing knows; nothing has been written.
    """
    device = devices.get("cpu")
    checks.check_array(ids, "ids", device, ("int32",), "what sort_by_expert takes")
    if ids.ndim != 2:
        raise ValueError(f"ids: expected (n_tokens, n_expert_used), got {tuple(ids.shape)}")
    n = ids.size
    inputs = {"ids": ids, "weights": weights}
    checks.check_array(weights, "weights", device, ("float32",))
    if weights.shape != ids.shape:
        raise ValueError(f"weights: expected shape {ids.shape} as ids, got {weights.shape}")
    outs = (
        ("tokens", tokens, "int32"),
        ("experts", experts, "int32"),
        ("row_weights", row_weights, "float32"),
    )
    for name, array, dtype in outs:
        checks.check_vector(array, name, device, (dtype,), n)
        checks.check_writable(array, name, device)
        checks.check_apart(array, name, device, inputs)
        inputs[name] = array
    if n and (int(ids.min()) < 0 or int(ids.max()) >= MAX_EXPERTS):
        raise IndexError(
            f"ids: experts are 0 to {MAX_EXPERTS - 1}; got {int(ids.min())} to {int(ids.max())}"
        )
    kernels = devices.kernels("lowlevel", device, "ops.sorting")
    kernels.sort_by_expert(device, ids, weights, tokens, experts, row_weights)
