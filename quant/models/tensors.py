"""The tensors that a pass reads, by name: from a file's header, shapes checked, before any data is touched."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dequantize import dequantize
from ..formats import FORMATS, BlockFormat, block_format
from ..gguf.header import ModelFileError
from ..gguf.other_types import described
from ..tensor import QuantTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..gguf.model_file import ModelFile

_OF_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class Weight:
    """A tensor of a file, or a view of one, by type and shape alone.

    Attributes
    ----------
    name : str
        In the file.
    format : BlockFormat
    shape : tuple of int
        Of the view.
    views : tuple
        How the view comes from the tensor: (shape, axis, start, stop), one after the other.
    is_turned : bool
        The last two axes change places: such a tensor has to be made, in floats.
    whole_bytes : int
        Of the tensor in the file.
    factor : float
        What products with it are multiplied by: the ``.scale`` tensor that NVFP4's have beside them in files.
        Of the tensor in the file, or of the share.
    share : tuple
        The views that make this rank's share of the tensor, which alone is brought to its device; `views` follow.
    """

    name: str
    format: BlockFormat
    shape: tuple
    views: tuple = ()
    is_turned: bool = False
    whole_bytes: int = 0
    factor: float = 1.0
    share: tuple = ()

    @property
    def stem(self) -> str:
        """Its name without its layer and ending: "attn_q"."""
        return self.name.split(".")[-2]

    @property
    def outline(self) -> tuple[BlockFormat, tuple]:
        """As `quant.matmul_plan` takes a tensor without data."""
        return self.format, self.shape

    @property
    def n_bytes(self) -> int:
        """Bytes of its blocks."""
        return math.prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])

    def reshape(self, *shape: int) -> Weight:
        """The same weights with other leading axes."""
        return replace(self, shape=shape, views=(*self.views, (shape, 0, 0, shape[0])))

    def part(self, start: int, stop: int, axis: int = 0) -> Weight:
        """A range along one of the leading axes."""
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return replace(self, shape=shape, views=(*self.views, (self.shape, axis, start, stop)))

    def cut(self, rank: int, n_ranks: int, axis: int) -> Weight:
        """A rank's share, one of `n_ranks` equal ranges along an axis; columns are the last one."""
        size = self.shape[axis] // n_ranks
        start, stop = rank * size, rank * size + size
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        share = (*self.share, *self.views, (self.shape, axis, start, stop))
        made = replace(self, shape=shape, views=(), share=share)
        return replace(made, whole_bytes=made.n_bytes)

    def turned(self, exact: bool = False) -> Weight:
        """The matrices of a stack turned, as floats: float16, but where that would lose something that counts."""
        n, rows, columns = self.shape
        made = block_format("F32" if exact or self.format.name in ("F32", "BF16") else "F16")
        return replace(self, shape=(n, columns, rows), format=made, is_turned=True)

    def shared(self, file: ModelFile) -> QuantTensor:
        """The tensor where the file is mapped, or this rank's share of it."""
        return _viewed(file[self.name], self.share)

    def view(self, whole: QuantTensor) -> QuantTensor:
        """The view of `shared`, wherever that lies; it must not be `is_turned`."""
        return _viewed(whole, self.views)

    def turn(self, file: ModelFile, n_threads: int | None = None) -> np.ndarray:
        """The bytes of an `is_turned` tensor: uint8, (n, rows, row bytes)."""
        n, rows, columns = self.shape
        made = np.empty((n, rows, self.format.row_bytes(columns)), np.uint8)
        floats = made.view(np.float32 if self.format.name == "F32" else np.float16)
        source = self.view(self.shared(file))
        for index in range(n):
            floats[index] = dequantize(source[index], n_threads=n_threads).T
        return made

    def floats_of(self, file: ModelFile) -> np.ndarray:
        """Its values as contiguous float32: where they lie if they are that already, else a copy."""
        values = dequantize(file[self.name]) if self.format.name != "F32" else None
        values = file[self.name].as_array() if values is None else values
        return np.require(_viewed(values, self.share + self.views), np.float32, ["C", "A"])


def of_one_format(weights: tuple[Weight, ...]) -> list[tuple[Weight, ...]]:
    """Weights that one product takes: all of one format, or each alone."""
    if len({weight.format.name for weight in weights}) == 1:
        return [weights]
    return [(weight,) for weight in weights]


def _viewed(whole: Any, views: tuple) -> Any:
    for shape, axis, start, stop in views:
        whole = whole.reshape(*shape)
        if axis == len(shape) - 1 and isinstance(whole, QuantTensor):
            whole = whole.column_range(start, stop)
        else:
            whole = whole[(slice(None),) * axis + (slice(start, stop),)]
    return whole


class TensorTable:
    """The header of a file as its reader takes tensors from it; what is left in the end is not understood."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._rest = set(file)
        self._path = file.paths[0]

    def has(self, name: str) -> bool:
        """Whether the file has a tensor."""
        return name in self._file

    def shape(self, name: str) -> tuple:
        """Of a tensor that the file has."""
        return self._file.tensor_info(name).shape

    def take(
        self, name: str, shape: tuple, *others: tuple, needed: bool = True, scaled: bool = False
    ) -> Weight | None:
        """A tensor of one of some shapes (None: any size); None if it is not needed and not there.

        `scaled`: with the factor of a ``.scale`` tensor beside it. Elsewhere such a tensor is one that nothing takes.

        Raises
        ------
        ModelFileError
            It is missing, of another shape, or of a type that is not supported.
        """
        if name not in self._file:
            if not needed:
                return None
            raise ModelFileError(f"{self._path}: tensor {name!r} is missing; the pass needs it")
        info = self._file.tensor_info(name)
        if info.qtype not in FORMATS:
            raise ModelFileError(
                f"{self._path}: tensor {name!r} has the type {described(info.qtype)}, which is not supported"
            )
        if not any(_fits(info.shape, each) for each in (shape, *others)):
            wanted = " or ".join(str(each).replace("None", "any") for each in (shape, *others))
            raise ModelFileError(
                f"{self._path}: tensor {name!r} has shape {info.shape}; the pass needs {wanted}"
            )
        self._rest.discard(name)
        factor = self._factor(name.removesuffix(".weight")) if scaled else 1.0
        return Weight(
            name, FORMATS[info.qtype], tuple(info.shape), whole_bytes=info.n_bytes, factor=factor
        )

    def _factor(self, stem):
        """The number in a weight's .scale; 1 without. Its .input_scale is for engines that round activations by it."""
        if f"{stem}.scale" not in self._file:
            return 1.0
        name = f"{stem}.scale"
        info = self._file.tensor_info(name)
        values = self._file.tensor_bytes(name).view("<f4") if info.type_name == "F32" else ()
        if len(values) != 1 or not np.isfinite(values[0]):
            raise ModelFileError(
                f"{self._path}: tensor {name!r} is {info.type_name} {info.shape}; expected one finite F32"
            )
        self._rest -= {name, f"{stem}.input_scale"}
        return float(values[0])

    def layer(self, index: int) -> LayerTensors:
        """The tensors of one layer, none taken yet."""
        return LayerTensors(self, f"blk.{index}.")

    def refuse_rest(self, n_layer: int, n_predictor: int) -> None:
        """Raise ModelFileError for a tensor that nothing has taken, but for those of predicting layers."""
        for name in sorted(self._rest):
            match = _OF_LAYER.fullmatch(name)
            if match and n_layer <= int(match[1]) < n_layer + n_predictor:
                continue
            raise ModelFileError(
                f"{self._path}: tensor {name!r} may change the pass, and is not understood here"
            )


class LayerTensors:
    """The tensors of one layer, by name without its prefix: those that `take_*` found."""

    def __init__(self, table: TensorTable, prefix: str) -> None:
        self._table, self._prefix = table, prefix
        self._taken: dict[str, Weight] = {}

    def __getitem__(self, name: str) -> Weight:
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._taken

    def __iter__(self) -> Iterator[str]:
        return iter(self._taken)

    def replaced(self, others: dict[str, Weight]) -> LayerTensors:
        """The same layer with other tensors by some names."""
        made = LayerTensors(self._table, self._prefix)
        made._taken = {**self._taken, **others}
        return made

    def get(self, name: str) -> Weight | None:
        """A tensor that was found, or None."""
        return self._taken.get(name)

    def values(self) -> Any:
        """All that were found."""
        return self._taken.values()

    def has(self, name: str) -> bool:
        """Whether the file has it."""
        return self._table.has(self._prefix + name)

    def rows(self, name: str, axis: int = 0) -> int:
        """Length of an axis of a tensor; 0 without it."""
        weight = self._taken.get(name)
        return weight.shape[axis] if weight else 0

    def _take(self, name, *shapes, needed=True, scaled=False):
        weight = self._table.take(self._prefix + name, *shapes, needed=needed, scaled=scaled)
        if weight is not None:
            self._taken[name] = weight
        return weight

    def _optional(self, name, *shapes):
        return self._take(name, *shapes, needed=False)

    def _matrix(self, name, *shapes, needed=True):
        """A weight that products are taken with one by one."""
        return self._take(name, *shapes, needed=needed, scaled=True)

    def take_head_attention(
        self, n_embd: int, n_head: int, n_head_kv: int, d_k: int, d_v: int
    ) -> None:
        """attn_{q,k,v} or attn_qkv, attn_output; biases, norms of q and k, sinks if there are any."""
        rows = {"q": n_head * d_k, "k": n_head_kv * d_k, "v": n_head_kv * d_v}
        if self.has("attn_qkv.weight"):
            total = sum(rows.values())
            self._split("attn_qkv.weight", "attn_{}.weight", rows, (total, n_embd))
            if self.has("attn_qkv.bias"):
                self._split("attn_qkv.bias", "attn_{}.bias", rows, (total,))
        else:
            for name, n in rows.items():
                self._matrix(f"attn_{name}.weight", (n, n_embd))
                self._optional(f"attn_{name}.bias", (n,))
        self._optional("attn_q_norm.weight", (d_k,), (n_head * d_k,))
        self._optional("attn_k_norm.weight", (d_k,), (n_head_kv * d_k,))
        self._optional("attn_sinks.weight", (n_head,))
        self._take_output(n_embd, n_head * d_v)

    def _split(self, name, part_name, rows, shape):
        whole = self._take(name, shape, scaled=name.endswith(".weight"))
        del self._taken[name]
        at = 0
        for part, n in rows.items():
            self._taken[part_name.format(part)] = whole.part(at, at + n)
            at += n

    def _take_output(self, n_embd, n_in):
        self._matrix("attn_output.weight", (n_embd, n_in))
        self._optional("attn_output.bias", (n_embd,))

    def take_latent_attention(
        self,
        n_embd: int,
        n_head: int,
        n_head_kv: int,
        d_k: int,
        d_v: int,
        rank: int,
        q_rank: int,
        n_rot: int,
    ) -> None:
        """attn_q or attn_q_{a,a_norm,b}, attn_kv_a_{mqa,norm}, attn_output; attn_kv_b, or attn_k_b and attn_v_b.

        All heads have weights of their own here; kept are "k_b", (n_head, d_nope, rank), or where the file has it
        turned (n_head, rank, d_nope) "k_b_turned", and "v_b", (n_head, d_v, rank).
        """
        if q_rank:
            self._matrix("attn_q_a.weight", (q_rank, n_embd))
            self._take("attn_q_a_norm.weight", (q_rank,))
            self._matrix("attn_q_b.weight", (n_head * d_k, q_rank))
        else:
            self._matrix("attn_q.weight", (n_head * d_k, n_embd))
        self._matrix("attn_kv_a_mqa.weight", (rank + n_rot, n_embd))
        self._take("attn_kv_a_norm.weight", (rank,))
        self._take_output(n_embd, n_head * d_v)
        d_nope = d_k - n_rot
        is_whole = not (self.has("attn_k_b.weight") and self.has("attn_v_b.weight"))
        kv_b = self._take("attn_kv_b.weight", (n_head * (d_nope + d_v), rank), needed=is_whole)
        if kv_b is not None:
            heads = kv_b.reshape(n_head, d_nope + d_v, rank)
            self._taken["k_b"] = heads.part(0, d_nope, axis=1)
            self._taken["v_b"] = heads.part(d_nope, d_nope + d_v, axis=1)
        k_b = self._optional("attn_k_b.weight", (n_head, rank, d_nope), (n_head * rank, d_nope))
        v_b = self._optional("attn_v_b.weight", (n_head, d_v, rank), (n_head * d_v, rank))
        if k_b is not None:
            self._taken["k_b_turned"] = k_b.reshape(n_head, rank, d_nope)
        if v_b is not None:
            self._taken["v_b"] = v_b.reshape(n_head, d_v, rank)

    def take_norms(self, n_embd: int) -> None:
        """The norms around both blocks. Some files call the one before the feed-forward part post_attention_norm."""
        self._take("attn_norm.weight", (n_embd,))
        post = "post_attention_norm.weight"
        if self.has("ffn_norm.weight"):
            self._take("ffn_norm.weight", (n_embd,))
            self._optional(post, (n_embd,))
        else:
            self._taken["ffn_norm.weight"] = self._take(post, (n_embd,))
            del self._taken[post]
        self._optional("post_ffw_norm.weight", (n_embd,))

    def take_dense(self, n_embd: int) -> None:
        """ffn_gate, ffn_up, ffn_down; or ffn_up with gate and up one after the other."""
        n_ff = self._matrix("ffn_down.weight", (n_embd, None)).shape[1]
        if self.has("ffn_gate.weight"):
            self._matrix("ffn_gate.weight", (n_ff, n_embd))
            self._matrix("ffn_up.weight", (n_ff, n_embd))
        else:
            both = self._matrix("ffn_up.weight", (2 * n_ff, n_embd))
            self._taken["ffn_gate.weight"] = both.part(0, n_ff)
            self._taken["ffn_up.weight"] = both.part(n_ff, 2 * n_ff)

    def take_experts(self, n_embd: int, n_expert: int) -> None:
        """The router and its biases, the experts' matrices and biases, the shared experts'."""
        self._take("ffn_gate_inp.weight", (n_expert, n_embd))
        self._optional("ffn_gate_inp.bias", (n_expert,))
        self._optional("exp_probs_b.bias", (n_expert,))
        down = self._take("ffn_down_exps.weight", (n_expert, n_embd, None))
        n_ff = down.shape[2]
        if self.has("ffn_gate_up_exps.weight"):
            both = self._take("ffn_gate_up_exps.weight", (n_expert, 2 * n_ff, n_embd))
            self._taken["ffn_gate_exps.weight"] = both.part(0, n_ff, axis=1)
            self._taken["ffn_up_exps.weight"] = both.part(n_ff, 2 * n_ff, axis=1)
        else:
            self._take("ffn_gate_exps.weight", (n_expert, n_ff, n_embd))
            self._take("ffn_up_exps.weight", (n_expert, n_ff, n_embd))
        self._optional("ffn_gate_exps.bias", (n_expert, n_ff))
        self._optional("ffn_up_exps.bias", (n_expert, n_ff))
        self._optional("ffn_down_exps.bias", (n_expert, n_embd))
        shared = self._matrix("ffn_down_shexp.weight", (n_embd, None), needed=False)
        if shared is not None:
            self._matrix("ffn_gate_shexp.weight", (shared.shape[1], n_embd))
            self._matrix("ffn_up_shexp.weight", (shared.shape[1], n_embd))


def _fits(shape, wanted):
    return len(shape) == len(wanted) and all(
        size > 0 and (want is None or size == want)
        for size, want in zip(shape, wanted, strict=True)
    )
