"""A whole pass of a model in plain float64 NumPy, straight from its GGUF file: what logits should be.

Independent of kqcap: the file is read and its weights decoded by the gguf package, formulas are those of the models'
papers and of llama.cpp at 0c1e57098. All tokens at once, no K/V cache, nothing is fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import gguf
import numpy as np
from threadpoolctl import threadpool_limits


class Float64Pass(NamedTuple):
    """What `float64_pass` finds.

    Attributes
    ----------
    logits : numpy.ndarray
        float64 (n_tokens, n_vocab).
    routing_margin : numpy.ndarray
        float64 (n_tokens,): by how much the router's logits of a token would have to be wrong, in the layer where it
        takes least, until other experts are chosen; infinite without experts.
    """

    logits: np.ndarray
    routing_margin: np.ndarray


def float64_pass(path, tokens, n_ctx: int = 0) -> Float64Pass:
    """The logits after each token of a prompt.

    Parameters
    ----------
    path : str, os.PathLike or File
        A GGUF file of an architecture in ARCHITECTURES.
    tokens : sequence of int
    n_ctx : int
        The context that is reserved: decides between Phi 3's two sets of RoPE factors, and on nothing else.
    """
    file = path if isinstance(path, File) else File(path)
    with threadpool_limits(
        1, "blas"
    ):  # products are small: more threads would only wait for each other
        return _float64_pass(file, tokens, n_ctx)


def _float64_pass(file, tokens, n_ctx):
    tokens = np.asarray(tokens)
    x = file["token_embd.weight"][tokens]
    if file.traits.scales_embedding:
        x = x * math.sqrt(file.n_embd)
    margin = np.full(len(tokens), np.inf)
    for il in range(file.n_layer):
        layer = Layer(file, il)
        x = x + layer.post_norm(
            "post_attention_norm", attention(layer, layer.norm("attn_norm", x), n_ctx)
        )
        ffn_norm = "ffn_norm" if layer.has("ffn_norm") else "post_attention_norm"
        out, layer_margin = feed_forward(layer, layer.norm(ffn_norm, x))
        x = x + layer.post_norm("post_ffw_norm", out)
        margin = np.minimum(margin, layer_margin)
    x = rms_norm(x, file["output_norm.weight"], file.epsilon)
    output = "output.weight" if file.has("output.weight") else "token_embd.weight"
    logits = softcap(x @ file[output].T, file.key("final_logit_softcapping", 0))
    return Float64Pass(logits, margin)


# ---------------------------------------------------------------- functions of the papers


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def softcap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def softmax(x, sinks=None):
    """Over the last axis; a sink is one more logit, whose share is dropped."""
    most = x.max(axis=-1, keepdims=True)
    if sinks is not None:
        most = np.maximum(most, sinks)
    e = np.exp(x - most)
    total = e.sum(axis=-1, keepdims=True)
    return e / (total if sinks is None else total + np.exp(sinks - most))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swiglu(gate, up):
    return gate * sigmoid(gate) * up


def geglu(gate, up):
    """GELU in its form by tanh."""
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + np.tanh(inner)) * up


def clamped_swiglu(gate, up, alpha=1.702, limit=7.0):
    """gpt-oss: both are clamped (the gate from above alone), and up is shifted by one."""
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(alpha * gate) * (up + 1)


# ---------------------------------------------------------------- architectures


class Traits(NamedTuple):
    """What the file does not say.

    Attributes
    ----------
    rope_pairs : str
        RoPE turns "adjacent" dimensions, or those half of the turned part apart ("halves").
    activation : callable
        Of gate and up.
    scales_embedding : bool
        Embeddings times sqrt(n_embd).
    window_period, window : int
        Of so many layers the last sees all keys; the window where the file does not say it.
    window_freq_base, window_scales : float or None, bool
        RoPE's base in windowed layers where it is another one; whether the context extension is for them as well.
    big_layers : int
        Models of so many layers (27B of Gemma) scale scores by 1/sqrt(n_embd / n_head).
    gating : str
        Where the file does not say it.
    norms_experts : bool
        Weights of the chosen experts sum to 1, whatever the file says.
    """

    rope_pairs: str = "halves"
    activation: Callable = swiglu
    scales_embedding: bool = False
    window_period: int = 0
    window: int = 0
    window_freq_base: float | None = None
    window_scales: bool = True
    big_layers: int = 0
    gating: str = "softmax"
    norms_experts: bool = False


ARCHITECTURES = {
    "llama": Traits(rope_pairs="adjacent", norms_experts=True),
    "qwen2": Traits(),
    "qwen3": Traits(),
    "qwen3moe": Traits(norms_experts=True),
    "gemma2": Traits(
        activation=geglu, scales_embedding=True, window_period=2, window=4096, big_layers=46
    ),
    "gemma3": Traits(
        activation=geglu,
        scales_embedding=True,
        window_period=6,
        window_freq_base=10000.0,
        window_scales=False,
        big_layers=62,
    ),
    "phi3": Traits(),
    "gpt-oss": Traits(activation=clamped_swiglu, window_period=2, gating="softmax-selected"),
    "glm4moe": Traits(gating="sigmoid"),
    "deepseek2": Traits(rope_pairs="adjacent"),
}
GATING = {1: "softmax", 2: "sigmoid", 3: "softmax-selected", 4: "sqrt-softplus"}
LEAST_SUM = 2.0**-14  # of the weights of the chosen experts, where they are divided by it


class File:
    """A model file: sizes by name, weights by name as float64."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.decoded = {}
        self.architecture = self.metadata["general.architecture"]
        self.traits = ARCHITECTURES[self.architecture]
        self.n_embd = self.key("embedding_length")
        self.n_layer = self.key("block_count") - self.key("nextn_predict_layers", 0)
        self.epsilon = self.key("attention.layer_norm_rms_epsilon")

    def key(self, name, default=None):
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise KeyError(name)
        return value

    def has(self, name):
        return name in self.tensors

    def __getitem__(self, name):
        if name not in self.decoded:
            tensor = self.tensors[name]
            weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            self.decoded[name] = weights.reshape([int(n) for n in reversed(tensor.shape)])
        return self.decoded[name]


class Layer:
    """One layer's weights, and the sizes that depend on the layer."""

    def __init__(self, file, il):
        self.file, self.il = file, il
        traits = file.traits
        window = file.key("attention.sliding_window", traits.window)
        pattern = file.key("attention.sliding_window_pattern", traits.window_period)
        if isinstance(pattern, list):
            is_windowed = bool(pattern[il])
        else:
            is_windowed = pattern > 1 and il % pattern < pattern - 1
        self.window = window if traits.window_period and is_windowed else 0

    def has(self, name):
        return self.file.has(f"blk.{self.il}.{name}.weight")

    def weight(self, name):
        return self.file[f"blk.{self.il}.{name}.weight"]

    def bias(self, name):
        full = f"blk.{self.il}.{name}.bias"
        return self.file[full] if self.file.has(full) else 0.0

    def linear(self, name, x):
        return x @ self.weight(name).T + self.bias(name)

    def norm(self, name, x):
        return rms_norm(x, self.weight(name), self.file.epsilon)

    def post_norm(self, name, x):
        """What Gemma does with a block's output; elsewhere the name is another norm's, or nobody's."""
        return self.norm(name, x) if self.has("post_ffw_norm") else x


# ---------------------------------------------------------------- RoPE


def rope_angles(layer, n_tokens, n_rot, n_ctx):
    """Angles (n_tokens, n_rot / 2), and the magnitude of what is turned by them."""
    file, traits = layer.file, layer.file.traits
    base, scales = file.key("rope.freq_base", 10000.0), True
    if layer.window:
        base = file.key("rope.freq_base_swa", traits.window_freq_base or base)
        scales = traits.window_scales
    pair = np.arange(n_rot // 2)
    frequency = base ** (-2.0 * pair / n_rot)
    original = file.key("rope.scaling.original_context_length", file.key("context_length"))
    if file.has("rope_freqs.weight"):
        frequency = frequency / file["rope_freqs.weight"]
    elif file.has("rope_factors_long.weight"):
        which = "long" if n_ctx > original else "short"
        frequency = frequency / file[f"rope_factors_{which}.weight"]
    magnitude = file.key("rope.scaling.attn_factor", 1.0)
    kind, factor = file.key("rope.scaling.type", "none"), file.key("rope.scaling.factor", 1.0)
    if kind == "linear" and scales:
        frequency = frequency / factor
    if kind == "yarn" and scales:

        def turning(n_turns):
            """The pair that makes so many turns over the original context."""
            return n_rot * math.log(original / (n_turns * 2 * math.pi)) / (2 * math.log(base))

        first = max(0, math.floor(turning(file.key("rope.scaling.yarn_beta_fast", 32.0))))
        last = min(n_rot - 1, math.ceil(turning(file.key("rope.scaling.yarn_beta_slow", 1.0))))
        kept = 1 - np.clip((pair - first) / max(0.001, last - first), 0, 1)
        frequency = frequency * kept + frequency / factor * (1 - kept)
        if not file.key("rope.scaling.yarn_log_multiplier", 0):
            magnitude *= 1 + 0.1 * math.log(factor)
    return np.arange(n_tokens)[:, None] * frequency, magnitude


def rope(x, layer, n_rot, n_ctx):
    """x (n_head, n_tokens, d): its first n_rot dimensions turned by each token's position."""
    angles, magnitude = rope_angles(layer, x.shape[1], n_rot, n_ctx)
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    halves = slice(0, n_rot // 2), slice(n_rot // 2, n_rot)
    adjacent = slice(0, n_rot, 2), slice(1, n_rot, 2)
    first, second = adjacent if layer.file.traits.rope_pairs == "adjacent" else halves
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


# ---------------------------------------------------------------- attention


def attention(layer, x, n_ctx):
    file = layer.file
    kind = latent_heads if file.key("attention.kv_lora_rank", 0) else plain_heads
    q, k, v, scale = kind(layer, x, n_ctx)
    n_head, n_tokens, _ = q.shape
    k, v = (np.repeat(heads, n_head // len(heads), axis=0) for heads in (k, v))
    scores = softcap(scale * (q @ k.transpose(0, 2, 1)), file.key("attn_logit_softcapping", 0))
    age = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    unseen = age < 0
    if layer.window:
        unseen |= age >= layer.window
    scores[:, unseen] = -np.inf
    sinks = layer.weight("attn_sinks")[:, None, None] if layer.has("attn_sinks") else None
    out = softmax(scores, sinks) @ v
    return layer.linear("attn_output", out.transpose(1, 0, 2).reshape(n_tokens, -1))


def heads_of(x, n_head):
    """(n_tokens, n_head * d) as (n_head, n_tokens, d)."""
    return x.reshape(len(x), n_head, -1).transpose(1, 0, 2)


def plain_heads(layer, x, n_ctx):
    file = layer.file
    n_head, n_embd = file.key("attention.head_count"), file.n_embd
    n_head_kv = file.key("attention.head_count_kv", n_head)
    d_k = file.key("attention.key_length", n_embd // n_head)
    if layer.has("attn_qkv"):
        cut = n_head * d_k, (n_head + n_head_kv) * d_k
        q, k, v = np.split(layer.linear("attn_qkv", x), cut, axis=-1)
    else:
        q, k, v = (layer.linear(name, x) for name in ("attn_q", "attn_k", "attn_v"))
    q, k, v = heads_of(q, n_head), heads_of(k, n_head_kv), heads_of(v, n_head_kv)
    if layer.has("attn_q_norm"):
        q, k = layer.norm("attn_q_norm", q), layer.norm("attn_k_norm", k)
    n_rot = file.key("rope.dimension_count", d_k)
    q, k = rope(q, layer, n_rot, n_ctx), rope(k, layer, n_rot, n_ctx)
    divided_by = n_embd // n_head if file.n_layer == file.traits.big_layers else d_k
    return q, k, v, file.key("attention.scale", 0.0) or divided_by**-0.5


def latent_heads(layer, x, n_ctx):
    """Multi-head latent attention, decompressed: every head has keys and values of its own."""
    file = layer.file
    n_head, rank = file.key("attention.head_count"), file.key("attention.kv_lora_rank")
    n_rot = file.key("rope.dimension_count")
    if layer.has("attn_q"):
        q = layer.linear("attn_q", x)
    else:
        q = layer.linear("attn_q_b", layer.norm("attn_q_a_norm", layer.linear("attn_q_a", x)))
    q = heads_of(q, n_head)
    d_k = q.shape[-1]
    d_nope = d_k - n_rot
    latent, k_pe = np.split(layer.linear("attn_kv_a_mqa", x), [rank], axis=-1)
    latent = layer.norm("attn_kv_a_norm", latent)
    if layer.has("attn_kv_b"):
        kv = heads_of(layer.linear("attn_kv_b", latent), n_head)
        k_nope, v = kv[..., :d_nope], kv[..., d_nope:]
    else:
        k_nope = latent @ layer.weight("attn_k_b").reshape(n_head, rank, d_nope)
        v = latent @ layer.weight("attn_v_b").reshape(n_head, -1, rank).transpose(0, 2, 1)
    q = np.concatenate([q[..., :d_nope], rope(q[..., d_nope:], layer, n_rot, n_ctx)], axis=-1)
    k_pe = np.repeat(rope(k_pe[None], layer, n_rot, n_ctx), n_head, axis=0)
    return q, np.concatenate([k_nope, k_pe], axis=-1), v, latent_scale(file) * d_k**-0.5


def latent_scale(file):
    """By what YaRN makes DeepSeek's scores larger."""
    if file.key("rope.scaling.type", "none") != "yarn":
        return 1.0
    multiplier = file.key("rope.scaling.yarn_log_multiplier", 0) or 0.1
    return (1 + multiplier * math.log(file.key("rope.scaling.factor", 1.0))) ** 2


# ---------------------------------------------------------------- feed-forward


def feed_forward(layer, x):
    """(its output, the routing's margin by token)"""
    activation = layer.file.traits.activation
    if layer.has("ffn_gate_inp"):
        out, margin = mixture_of_experts(layer, x)
        if layer.has("ffn_gate_shexp"):
            gate, up = layer.linear("ffn_gate_shexp", x), layer.linear("ffn_up_shexp", x)
            out = out + layer.linear("ffn_down_shexp", activation(gate, up))
        return out, margin
    up = layer.linear("ffn_up", x)
    gate, up = (layer.linear("ffn_gate", x), up) if layer.has("ffn_gate") else np.split(up, 2, -1)
    return layer.linear("ffn_down", activation(gate, up)), np.inf


def mixture_of_experts(layer, x):
    file = layer.file
    chosen, weights, margin = route(layer, layer.linear("ffn_gate_inp", x))
    if layer.has("ffn_gate_up_exps"):
        gates, ups = np.split(layer.weight("ffn_gate_up_exps"), 2, axis=1)
    else:
        gates, ups = layer.weight("ffn_gate_exps"), layer.weight("ffn_up_exps")
    downs = layer.weight("ffn_down_exps")
    n_expert = file.key("expert_count")
    biases = [
        np.broadcast_to(layer.bias(f"ffn_{name}_exps"), (n_expert, rows.shape[1]))
        for name, rows in (("gate", gates), ("up", ups), ("down", downs))
    ]
    out = np.zeros_like(x)
    for expert in range(n_expert):
        token, slot = np.nonzero(chosen == expert)
        gate = x[token] @ gates[expert].T + biases[0][expert]
        up = x[token] @ ups[expert].T + biases[1][expert]
        down = file.traits.activation(gate, up) @ downs[expert].T + biases[2][expert]
        out[token] += weights[token, slot, None] * down
    return out, margin


def route(layer, logits):
    """(the experts of each token, their weights, both (n_tokens, n_used); the margin of the choice)"""
    file, traits = layer.file, layer.file.traits
    gating = GATING.get(file.key("expert_gating_func", 0), traits.gating)
    n_tokens, n_expert = logits.shape
    n_used = file.key("expert_used_count")
    # probabilities, and how fast each grows with its own logit
    if gating == "softmax":
        probs = softmax(logits)
        slope = probs * (1 - probs)
    elif gating == "sigmoid":
        probs = sigmoid(logits)
        slope = probs * (1 - probs)
    elif gating == "sqrt-softplus":
        probs = np.sqrt(np.log1p(np.exp(logits)))
        slope = sigmoid(logits) / (2 * probs)
    else:
        probs, slope = logits, np.ones_like(logits)
    scores = probs + layer.bias("exp_probs_b")
    n_group = file.key("expert_group_count", 0)
    margin = np.full(n_tokens, np.inf)
    if n_group > 1:
        grouped, slopes = (a.reshape(n_tokens, n_group, -1) for a in (scores, slope))
        two_best = np.argsort(-grouped, axis=-1)[..., :2]
        group_scores = np.take_along_axis(grouped, two_best, -1).sum(-1)
        group_slopes = np.take_along_axis(slopes, two_best, -1).sum(-1)
        n_group_used = file.key("expert_group_used_count")
        best, margin = top(group_scores, group_slopes, n_group_used)
        allowed = np.zeros((n_tokens, n_group), bool)
        np.put_along_axis(allowed, best, True, axis=-1)
        scores = np.where(allowed[..., None], grouped, -np.inf).reshape(n_tokens, n_expert)
    chosen, margin_of_experts = top(scores, slope, n_used)
    weights = np.take_along_axis(probs, chosen, axis=-1)
    if gating == "softmax-selected":
        weights = softmax(weights)
    if traits.norms_experts or file.key("expert_weights_norm", False):
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), LEAST_SUM)
    scale = file.key("expert_weights_scale", 0.0) or 1.0
    return chosen, scale * weights, np.minimum(margin, margin_of_experts)


def top(scores, slopes, n):
    """(the n best of each row, by how much logits must change until it is others)"""
    order = np.argsort(-scores, axis=-1, kind="stable")
    if n >= scores.shape[-1]:
        return order, np.full(len(scores), np.inf)
    last, next_one = order[:, n - 1 : n], order[:, n : n + 1]

    def pick(values, index):
        return np.take_along_axis(values, index, axis=-1)[:, 0]

    gap = pick(scores, last) - pick(scores, next_one)
    return order[:, :n], gap / (pick(slopes, last) + pick(slopes, next_one))
