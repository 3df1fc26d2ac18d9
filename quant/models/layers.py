"""The blocks of models, as the papers have them: attention with heads or with latents, dense parts and experts.

Each function notes its operations on a `Recorder`; `x`, the residual stream, (n_tokens, n_embd), is added to in place.
What a model has, its tensors tell: nothing here asks for an architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recorder import Recorder
from .step import ABSORBED, Choices, Pass, latent_form

if TYPE_CHECKING:
    from .buffers import ExpertRows, Rows
    from .config import LayerConfig, ModelConfig
    from .tensors import Weight

# Groups of the feed-forward parts are not made smaller than this of themselves: each unpacks its weights anew.
LEAST_GROUP_ROWS = 256
# Columns of a product that kernels take at once: parts are multiples of it.
LEAST_PART = 128
# Where each product sorts its rows, groups have so many an expert: three quarters of the two tiles of 64 rows that kernels
# take, as with twice as many, which would need twice the memory.
ROWS_AN_EXPERT = 96


def record_pass(
    config: ModelConfig,
    choices: Choices,
    n_tokens: int,
    n_outputs: int,
    n_kv: int | None = None,
    counted: bool = False,
) -> Pass:
    """The plan of a pass over `n_tokens` tokens that gives logits of the last `n_outputs`.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    n_tokens, n_outputs : int
        0 outputs: the cache is filled, no more. A part that has the output but no layer is given rows whose logits
        are asked for alone.
    n_kv : int, optional
        Tokens in the cache after it, which latent attention's form goes by. None: n_ctx.
    counted : bool
        See `Pass`.
    """
    s = Recorder(config, choices, n_tokens, n_outputs, counted)
    n_kv = choices.n_ctx if n_kv is None else n_kv
    x = s.embed(config.token_embd) if config.has_input else s.receive_rows()
    for layer in config.layers:
        s.scope(f"blk.{layer.index}")
        is_last = layer.index == config.n_layer - 1
        # Behind the last layer's K and V only the rows whose logits are asked for matter.
        n_active = n_outputs if is_last else n_tokens
        attend = latent_attention if layer.is_latent else head_attention
        attend(s, x, layer, n_active, n_kv)
        x = x.rows(n_tokens - n_active, n_tokens) if n_active else x
        if n_active:
            feed_forward(s, x, layer)
    s.scope("")
    is_needed = n_outputs or not config.has_last
    if not config.has_output:
        if is_needed:
            s.send_rows(x)
    elif n_outputs:
        width = attention_width(config.layers[-1]) if config.layers else config.n_embd
        most = n_tokens * width // config.n_vocab
        s.logits(s.rms_norm(x, config.output_norm), config.output, max(1, min(most, n_outputs)))
    return s.finish()


def record_experts(
    config: ModelConfig, choices: Choices, layer: LayerConfig, n_tokens: int
) -> Pass:
    """The plan of the routed experts of one layer alone, on the CPU: see host_experts.py.

    Given are rows of "h", "ids" and "weights"; "y" becomes the sum of each token's experts.
    """
    assert layer.routing is not None
    s = Recorder(config, choices, n_tokens, 0)
    s.scope(f"blk.{layer.index}")
    n_used = layer.routing.n_expert_used
    h, y = (s.given(name, n_tokens, config.n_embd) for name in ("h", "y"))
    ids = s.given("ids", n_tokens, n_used, "int32")
    s.clear(y)
    experts(s, y, h, layer, s.expert_rows(ids, s.given("weights", n_tokens, n_used)))
    return s.finish()


def head_attention(s: Recorder, x: Rows, layer: LayerConfig, n_active: int, n_kv: int) -> None:
    """Attention with K and V of each head cached: Vaswani et al. (2017), Ainslie et al., "GQA" (2023)."""
    t, n_tokens = layer.tensors, x.shape[0]
    h = s.rms_norm(x, t["attn_norm.weight"])
    heads = s.choices.heads
    k = s.product(h, t["attn_k.weight"], bias=t.get("attn_k.bias"), dtype=heads)
    v = s.product(h, t["attn_v.weight"], bias=t.get("attn_v.bias"), dtype=heads)
    head_norm(s, k, t.get("attn_k_norm.weight"), layer.n_head_kv)
    s.rope(k.heads(layer.n_head_kv), layer.rope, name="k")
    s.store(layer, k.heads(layer.n_head_kv), v.heads(layer.n_head_kv))
    if not n_active:
        return
    active = h.rows(n_tokens - n_active, n_tokens)
    q = s.product(active, t["attn_q.weight"], bias=t.get("attn_q.bias"), dtype=heads)
    head_norm(s, q, t.get("attn_q_norm.weight"), layer.n_head)
    s.rope(q.heads(layer.n_head), layer.rope)
    kqv = s.new("kqv", n_active, layer.n_head * layer.d_v, heads)
    s.attend(layer, q.heads(layer.n_head), kqv.heads(layer.n_head))
    attention_output(s, x, layer, kqv, n_active)


def head_norm(s: Recorder, x: Rows, weight: Weight | None, n_head: int) -> None:
    """RMS norm of each head of q or k, or of all heads' row as one, in place; none without a weight."""
    if weight is None:
        return
    rows = x if weight.shape[0] == x.shape[1] else x.head_rows(n_head)
    s.rms_norm(rows, weight, out=rows)


def latent_attention(s: Recorder, x: Rows, layer: LayerConfig, n_active: int, n_kv: int) -> None:
    """Multi-head latent attention: DeepSeek-V2 (arXiv:2405.04434), section 2.1.

    Cached is one row a token, [c_kv | k_pe]. Decompressed, attention makes keys and values of it by wk_b and wv_b, chunk
    by chunk; absorbed, queries go through wk_b and outputs through wv_b, and the row serves as the one key and value.
    """
    t, n_tokens, rank, n_head = layer.tensors, x.shape[0], layer.kv_lora_rank, layer.n_head
    h = s.rms_norm(x, t["attn_norm.weight"])
    kv = s.product(h, t["attn_kv_a_mqa.weight"], dtype=s.choices.heads)
    c_kv, k_pe = kv.columns(0, rank), kv.columns(rank, rank + layer.rope.n_rot)
    s.rms_norm(c_kv, t["attn_kv_a_norm.weight"], out=c_kv)
    s.rope(k_pe.heads(1), layer.rope, name="k_pe")
    s.store(layer, kv.heads(1))
    if not n_active:
        return
    active = h.rows(n_tokens - n_active, n_tokens)
    q = latent_queries(s, active, layer)
    s.rope(q.heads(n_head), layer.rope, offset=layer.d_nope)
    kqv = s.new("kqv", n_active, n_head * layer.d_v, s.choices.heads)
    form = latent_form(layer, n_active, n_kv, s.choices.mla)
    if form == ABSORBED:
        absorbed_attention(s, layer, q, kqv)
    else:
        s.attend(layer, q.heads(n_head), kqv.heads(n_head), form)
    attention_output(s, x, layer, kqv, n_active)


def latent_queries(s: Recorder, h: Rows, layer: LayerConfig) -> Rows:
    """Queries, by way of their own latents where the file has such."""
    t = layer.tensors
    if not layer.q_lora_rank:
        return s.product(h, t["attn_q.weight"], dtype=s.choices.heads)
    a = s.product(h, t["attn_q_a.weight"])
    s.rms_norm(a, t["attn_q_a_norm.weight"], out=a)
    return s.product(a, t["attn_q_b.weight"], dtype=s.choices.heads)


def absorbed_attention(s: Recorder, layer: LayerConfig, q: Rows, kqv: Rows) -> None:
    """Queries as latents over the latents, and the outputs' latents to values."""
    t, n_head, rank, n_rot = layer.tensors, layer.n_head, layer.kv_lora_rank, layer.rope.n_rot
    n, d_nope = q.shape[0], layer.d_nope
    latent = s.new("q_latent", n, n_head * (rank + n_rot), s.choices.heads)
    rows = latent.head_rows(n_head)
    q_rows = q.head_rows(n_head)
    wk_b = t.get("k_b_turned") or t["k_b"].turned(s.choices.exact)
    s.head_product(q_rows.columns(0, d_nope), wk_b, rows.columns(0, rank), n_head)
    s.copy(q_rows.columns(d_nope, d_nope + n_rot), rows.columns(rank, rank + n_rot), "q_pe")
    mixed = s.new("kqv_latent", n, n_head * rank, s.choices.heads)
    s.attend(layer, latent.heads(n_head), mixed.heads(n_head), ABSORBED)
    s.head_product(mixed.head_rows(n_head), t["v_b"], kqv.head_rows(n_head), n_head)


def attention_output(s: Recorder, x: Rows, layer: LayerConfig, kqv: Rows, n_active: int) -> None:
    """All heads' results to the residual stream."""
    t = layer.tensors
    weight, bias = t["attn_output.weight"], t.get("attn_output.bias")
    y = (
        s.summed_product(kqv, weight, bias)
        if s.divides_heads
        else s.product(kqv, weight, bias=bias)
    )
    if "post_attention_norm.weight" in t:
        s.rms_norm(y, t["post_attention_norm.weight"], out=y)
    s.add(x.rows(x.shape[0] - n_active, x.shape[0]), y)


def feed_forward(s: Recorder, x: Rows, layer: LayerConfig) -> None:
    """The dense part, or the experts that tokens choose and those that they share."""
    t = layer.tensors
    # What a router is given decides between experts: it is not rounded.
    h = s.rms_norm(x, t["ffn_norm.weight"], dtype="float32" if layer.routing else None)
    if layer.routing is None:
        gated_part(s, x, h, layer, "", layer.n_ff)
        return
    chosen = routed(s, h, layer)
    if x.shape[0] > LEAST_GROUP_ROWS and not layer.experts_on_host:
        h = s.narrowed(h)  # as products round it
    s.keep_on_first_rank(x)
    if layer.experts_on_host:
        s.hand_to_host(layer, h, *chosen)
    else:
        experts(s, x, h, layer, s.expert_rows(*chosen))
    if layer.n_ff_shared:  # a device works on them while the host works on the others
        gated_part(s, x, h, layer, "_shexp", layer.n_ff_shared)
    if layer.experts_on_host:
        s.add(x, s.take_from_host(layer, x.shape[0]))
    s.all_reduce(x)


def gated_part(s: Recorder, x: Rows, h: Rows, layer: LayerConfig, suffix: str, n_ff: int) -> None:
    """``down(act(gate(h)) * up(h))``: Shazeer, "GLU Variants Improve Transformer" (2020); some rows at a time."""
    t, n = layer.tensors, x.shape[0]
    gate, up, down = (t[f"ffn_{name}{suffix}.weight"] for name in ("gate", "up", "down"))
    step = group_rows(s, layer, n, 2 * n_ff + s.config.n_embd)
    for start in range(0, n, step):
        stop = min(start + step, n)
        both = s.product(h.rows(start, stop), (gate, up), name=f"ffn_gate_up{suffix}")
        s.gated(both.columns(0, n_ff), both.columns(n_ff, 2 * n_ff))
        # Shared experts' part is added up with that of the others.
        y = (s.product if suffix else s.summed_product)(both.columns(0, n_ff), down)
        if "post_ffw_norm.weight" in t:
            s.rms_norm(y, t["post_ffw_norm.weight"], out=y)
        s.add(x.rows(start, stop), y)


def routed(s: Recorder, h: Rows, layer: LayerConfig) -> tuple[Rows, Rows]:
    """The experts that each token chooses, and their weights."""
    t = layer.tensors
    logits = s.product(h, t["ffn_gate_inp.weight"], dtype="float32")
    if "ffn_gate_inp.bias" in t:
        s.add_vector(logits, t["ffn_gate_inp.bias"])
    return s.route(layer, logits)


def experts(s: Recorder, x: Rows, h: Rows, layer: LayerConfig, of: ExpertRows) -> None:
    """Shazeer et al. (2017): each token's experts, by grouped products over rows sorted by expert, some at a time."""
    t, n_ff, n_embd = layer.tensors, layer.n_ff_expert, s.config.n_embd
    gate, up, down = (t[f"ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
    n = of.experts.shape[0]
    step = group_rows(s, layer, n, 2 * n_ff + n_embd)
    if s.choices.in_token_order and s.choices.group_rows is None:
        assert layer.routing is not None
        step = min(n, max(step, ROWS_AN_EXPERT * layer.routing.n_expert))
    step = max(1, step // of.per_token) * of.per_token
    for start in range(0, n, step):
        stop = min(start + step, n)
        of_expert, of_token = of.experts.rows(start, stop), of.tokens.rows(start, stop)
        both = s.expert_product(h, (gate, up), of_expert, "ffn_gate_up_exps", of_token)
        halves = both.columns(0, n_ff), both.columns(n_ff, 2 * n_ff)
        for name, half in zip(("gate", "up"), halves, strict=True):
            if f"ffn_{name}_exps.bias" in t:
                s.add_vector(half, t[f"ffn_{name}_exps.bias"], of_expert)
        s.gated(*halves)
        bias = t.get("ffn_down_exps.bias") if s.is_first_rank else None
        is_long = stop - start > LEAST_GROUP_ROWS and n_ff >= LEAST_PART
        if s.choices.in_token_order and is_long and bias is None:
            # Some columns at a time, over what gate and up have left: no more memory than they took.
            for first, last in equal_parts(n_embd, n_ff):
                to = halves[1].columns(0, last - first)
                y = s.part_of_expert_product(halves[0], down, of_expert, "ffn_down_exps", first, to)
                s.scatter_add(y, x.columns(first, last), of, start)
            continue
        y = s.expert_product(halves[0], (down,), of_expert, "ffn_down_exps")
        if bias is not None:
            s.add_vector(y, bias, of_expert)
        s.scatter_add(y, x, of, start)


def equal_parts(n: int, most: int) -> list[tuple[int, int]]:
    """Ranges of `n` columns, as few as have `most` or fewer, in whole units of `LEAST_PART`."""
    n_parts = -(-n // (most // LEAST_PART * LEAST_PART))
    step = -(-n // (n_parts * LEAST_PART)) * LEAST_PART
    return [(first, min(first + step, n)) for first in range(0, n, step)]


def group_rows(s: Recorder, layer: LayerConfig, n: int, width: int) -> int:
    """Rows of `width` values that are worked on at a time: no more memory than the layer's attention takes."""
    if s.choices.group_rows is not None:
        return min(n, s.choices.group_rows)
    most = s.made.n_tokens * attention_width(layer) // width
    return min(n, max(LEAST_GROUP_ROWS, most // LEAST_GROUP_ROWS * LEAST_GROUP_ROWS))


def attention_width(layer: LayerConfig) -> int:
    """Values a token that a layer's attention has at once, beside the residual stream and its norm."""
    return layer.q_lora_rank + layer.n_head * (layer.d_k + layer.d_v)
