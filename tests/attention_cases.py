"""Random attention calls: sizes, options and operands, for every backend's tests."""

import dataclasses

import numpy as np

# DESIGN.md, promise 3: for score standard deviation up to 3.
FLOAT32_BOUND = 5e-6


@dataclasses.dataclass
class Case:
    """Operands and options of one call."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict

    @property
    def sizes(self):
        """Keyword arguments for plan_attention."""
        n_head, n_tokens, d_k = self.q.shape
        return dict(
            n_head=n_head,
            n_head_kv=self.k.shape[0],
            n_tokens=n_tokens,
            n_kv=self.k.shape[1],
            d_k=d_k,
            d_v=self.v.shape[2],
        )

    def __str__(self):
        return f"{self.sizes} {sorted(self.options)}"


HEADS = ((1, 1), (2, 2), (4, 2), (20, 20), (6, 1), (8, 2), (5, 5), (12, 4), (3, 1))
TOKENS = (1, 2, 3, 5, 16, 17, 31, 33, 64, 97, 300)
KEYS = (1, 2, 7, 15, 16, 17, 63, 101, 257, 300, 523)
DEPTHS = ((192, 128), (128, 128), (64, 64), (64, 80), (40, 24), (7, 5), (1, 1), (96, 33), (16, 160))


def random_case(rng, plain=False):
    """A random call; `plain`: causal attention without options."""
    n_head, n_head_kv = HEADS[rng.integers(len(HEADS))]
    n_tokens, n_kv = int(rng.choice(TOKENS)), int(rng.choice(KEYS))
    d_k, d_v = DEPTHS[rng.integers(len(DEPTHS))]
    # Scores of standard deviation 1 or 3 at the usual scale.
    q = rng.standard_normal((n_head, n_tokens, d_k), dtype=np.float32) * np.float32(
        rng.choice([1, 3])
    )
    k = rng.standard_normal((n_head_kv, n_kv, d_k), dtype=np.float32)
    v = rng.standard_normal((n_head_kv, n_kv, d_v), dtype=np.float32)
    options = {}
    if not plain:
        options["causal"] = bool(rng.random() < 0.7)
        if rng.random() < 0.3:
            options["window"] = int(rng.integers(1, n_kv + 5))
        if rng.random() < 0.3:
            options["softcap"] = float(rng.choice([0.5, 5.0, 30.0]))
        if rng.random() < 0.3:
            options["alibi_slopes"] = rng.uniform(0, 0.5, n_head).astype(np.float32)
        if rng.random() < 0.3:
            options["sinks"] = rng.normal(0, 2, n_head).astype(np.float32)
        if rng.random() < 0.3:
            options["scale"] = float(rng.choice([0.02, 1 / np.sqrt(d_k), -0.05, 0.0]))
        if rng.random() < 0.4:
            options["mask"] = random_mask(rng, n_head, n_tokens, n_kv)
    return Case(q, k, v, options)


def random_mask(rng, n_head, n_tokens, n_kv):
    """Additive values with some -inf, whole rows of it too, per head or shared."""
    shape = (n_tokens, n_kv) if rng.random() < 0.5 else (n_head, n_tokens, n_kv)
    mask = rng.normal(0, 1, shape).astype(np.float32)
    mask[rng.random(shape) < 0.3] = -np.inf
    mask[..., rng.random(n_tokens) < 0.1, :] = -np.inf
    return mask
