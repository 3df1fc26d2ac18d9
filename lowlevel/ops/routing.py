"""Choosing the experts of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel import checks, devices

if TYPE_CHECKING:
    from lowlevel.arrays import Array

GATINGS = ("softmax", "sigmoid", "softmax_selected", "sqrt_softplus")
MAX_EXPERTS = 1024
MAX_USED = 32
MAX_GROUPS = 32


def top_k_routing(
    logits: Array,
    ids: Array,
    weights: Array,
    *,
    gating: str = "softmax",
    bias: Array | None = None,
    n_group: int = 1,
    n_group_used: int = 1,
    normalise: bool = False,
    scale: float = 1.0,
    n_threads: int | None = None,
) -> tuple[Array, Array]:
    """The best experts of each token, best first, and what their outputs weigh.

    Shazeer et al., "Outrageously Large Neural Networks" (2017), section 2.1; bias, groups and sigmoid as in "DeepSeek-V3 Technical
    Report" (2024), section 2.1.2.

    Parameters
    ----------
    logits : array, (n_tokens, n_expert)
        The router's, activations of up to 1024 experts; a contiguous last axis.
    ids : array of int32, (n_tokens, n_expert_used)
        Written: experts by falling score; up to 32 a token. A contiguous last axis.
    weights : array of float32, (n_tokens, n_expert_used)
        Written: the weight of each. A contiguous last axis.
    gating : str
        An expert's score and weight by its logit: "softmax" (over all experts), "sigmoid", "sqrt_softplus"; or
        "softmax_selected": the score is the logit, weights are the softmax over the selected logits.
    bias : array of float32, (n_expert,), optional
        Added to scores for the selection, never to weights. Contiguous.
    n_group, n_group_used : int
        Experts stand in `n_group` groups (up to 32) of equal size, two at least. A group's score is the sum of its two best experts';
        experts are selected from the `n_group_used` best groups. n_group 1: no groups.
    normalise : bool
        Divide weights by their sum, or by 6.103515625e-5 if that is more.
    scale : float
        What weights are multiplied with at the end.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    (array, array)
        `ids`, `weights`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.

    Notes
    -----
    Among equal scores the lowest index wins, of experts and of groups. Without a bias and groups experts are compared by their logits, exactly.
    Scores of -inf or NaN count as the lowest float32, so that ids are different experts whatever comes; a NaN that the
    formula gives stays in the weights. Weights are within 6e-6 of the exact ones, relatively, where those of the formula's exp are
    exp(-87) or more.
    """
    device = devices.of_array(logits, "logits")
    rows = checks.rows_of(logits, "logits", device, device.activations)
    if logits.ndim != 2:
        raise ValueError(f"logits: expected (n_tokens, n_expert), got {tuple(logits.shape)}")
    n_tokens, n_expert = logits.shape
    checks.whole_number(n_expert, "logits: experts", 1, MAX_EXPERTS)
    n_group = checks.whole_number(n_group, "n_group", 1, MAX_GROUPS)
    n_group_used = checks.whole_number(n_group_used, "n_group_used", 1, n_group)
    if n_group > 1 and (n_expert % n_group or n_expert < 2 * n_group):
        raise ValueError(
            f"n_group: {n_expert} experts do not make {n_group} groups of one size, two at least"
        )
    checks.check_array(ids, "ids", device, ("int32",))
    if ids.ndim != 2:
        raise ValueError(f"ids: expected (n_tokens, n_expert_used), got {tuple(ids.shape)}")
    eligible = n_expert // n_group * n_group_used
    n_used = checks.whole_number(ids.shape[1], "ids: experts used", 1, min(MAX_USED, eligible))
    shape = (n_tokens, n_used)
    checks.choice(gating, "gating", GATINGS)
    checks.check_weights(bias, "bias", device, n_expert)
    inputs = {"logits": logits, "bias": bias}
    id_rows = checks.check_result(ids, "ids", device, ("int32",), shape, inputs)
    inputs["ids"] = ids
    weight_rows = checks.check_result(weights, "weights", device, ("float32",), shape, inputs)
    normalise, scale = checks.flag(normalise, "normalise"), checks.real_number(scale, "scale")
    run = devices.kernels("lowlevel", device, "ops.routing").route
    run(
        device, rows, bias, id_rows, weight_rows,
        gating, n_group, n_group_used, normalise, scale, n_threads,
    )  # fmt: skip
    return ids, weights
