"""Write a model file of given sizes with seeded random weights, so that anybody has one to run."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFEndian, GGUFWriter

from lowlevel.cpu.threads import resolve_n_threads
from lowlevel.sizes import format_size

from ...formats import BlockFormat
from ...gguf.header import DEFAULT_ALIGNMENT
from ...quantize import quantize
from ..named_geometries import named_geometry
from .metadata import check_vocab, model_metadata
from .random_weights import slabs
from .tensor_list import TensorSpec, tensor_list
from .type_mix import check_type_map, mix_of, outline_of, tensor_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from quant.models.geometry import ModelGeometry

    from ...tensor import QType


MAX_SEED = 2**63 - 1
MAX_ROW = 2**22  # weights: rows are made one by one at least


@dataclass(frozen=True)
class PlannedTensor:
    spec: TensorSpec
    block: BlockFormat

    @property
    def n_weights(self) -> int:
        result = 1
        for size in self.spec.shape:
            result *= size
        return result

    @property
    def n_bytes(self) -> int:
        return self.n_weights // self.block.block_weights * self.block.block_bytes


def plan_tensors(
    geometry: ModelGeometry,
    qtype: QType = "Q8_0",
    *,
    types: Mapping[str, Any] | None = None,
    type_map: Sequence[tuple[str, Any]] = (),
    pure: bool = False,
    only_attention: bool = False,
) -> list[PlannedTensor]:
    """What `make_gguf` with the same arguments would write: a list of `PlannedTensor`.

    Takes no time whatever the size.
    """
    geometry = _checked_geometry(geometry)
    check_vocab(geometry)
    if geometry.architecture == "llama" and geometry.d_v != geometry.d_k and not only_attention:
        raise ValueError(
            f"d_v: llama.cpp loads llama models whose d_v is d_k ({geometry.d_k}), not "
            f"{geometry.d_v}; only_attention=True writes such a file for kqcap alone"
        )
    specs = tensor_list(geometry, only_attention)
    longest = max(specs, key=lambda spec: spec.shape[-1])
    if longest.shape[-1] > MAX_ROW:
        raise ValueError(
            f"{longest.name}: rows of {longest.shape[-1]} weights; at most {MAX_ROW}, with fewer or "
            "smaller heads, or a smaller width"
        )
    unknown = set(types or ()) - {spec.kind.role for spec in tensor_list(geometry)}
    if unknown:
        roles = sorted({spec.kind.role for spec in specs})
        raise ValueError(f"types: no tensor has the role {min(unknown)!r}; roles are {roles}")
    check_type_map(type_map, specs)
    _, mix = mix_of(qtype, pure)
    model = outline_of(geometry, specs)
    return [PlannedTensor(spec, tensor_type(spec, mix, model, types, type_map)) for spec in specs]


def make_gguf(
    path: str | os.PathLike[str],
    geometry: ModelGeometry,
    qtype: QType = "Q8_0",
    *,
    types: Mapping[str, Any] | None = None,
    type_map: Sequence[tuple[str, Any]] = (),
    pure: bool = False,
    only_attention: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    n_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[PlannedTensor]:
    """Write a GGUF model file with seeded random weights.

    It is written beside `path` under a temporary name and renamed when whole, so that `path` never
    holds half a file; a few slabs of 4 MiB of weights are in memory at a time.

    Parameters
    ----------
    path : str or os.PathLike
    geometry : ModelGeometry or str
        Or the name of one in `quant.models.named_geometries.GEOMETRIES`.
    qtype : gguf.GGMLQuantizationType or str
        Format of the bulk of the tensors, or the name of a mix: "Q4_K_M", "UD-Q2_K_XL", ... Norms and
        routers are float32; some get a better one as in llama.cpp's files of that name; columns that do
        not fill blocks get a fallback (type_mix.py).
    types : dict of str to type, optional
        Formats by role: "output", "token_embd", "attention", "attn_v", "ffn_down", ...
    type_map : sequence of (str, type)
        Formats by regular expression, found anywhere in a tensor's name; the first that matches counts,
        and is stronger than all else but float32 for norms, biases and routers.
    pure : bool
        The bulk's format for all, but for float32, `types` and `type_map`.
    only_attention : bool
        Only the attention's tensors: enough for kqcap, not a whole model.
    seed : int
        At least 0. A tensor's weights depend on it, its name and its shape alone.
    overwrite : bool
        Replace an existing file.
    n_threads : int, optional
        None: all CPUs.
    progress : callable, optional
        Called with (bytes written, bytes in all) after every slab.

    Returns
    -------
    list of PlannedTensor
        What was written.

    Raises
    ------
    ValueError, TypeError
        Sizes, types or a seed that do not work.
    FileExistsError, OSError
        The file exists, or the disk is too small for it; nothing was written.
    """
    path = pathlib.Path(path)
    geometry = _checked_geometry(geometry)
    name, mix = mix_of(qtype, pure)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed: a whole number from 0 to {MAX_SEED}; got {seed!r}")
    n_threads = resolve_n_threads(n_threads)
    tensors = plan_tensors(
        geometry, qtype, types=types, type_map=type_map, pure=pure, only_attention=only_attention
    )
    metadata = model_metadata(geometry, mix.file_type or name)
    _check_target(path, overwrite)
    n_bytes = sum(map(_padded_bytes, tensors))
    _check_disk(path, n_bytes)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        _write_header(unfinished, geometry.architecture, metadata, tensors)
        _check_disk(path, n_bytes)  # beside the header, which is there now
        _append_tensors(unfinished, geometry, tensors, seed, n_threads, progress)
        _check_target(path, overwrite)  # somebody else may have made it meanwhile
        os.replace(unfinished, path)
    finally:  # on Ctrl-C too; the command makes SIGTERM an exception (tools/cli.py)
        unfinished.unlink(missing_ok=True)
    return tensors


def _checked_geometry(geometry):
    geometry = named_geometry(geometry) if isinstance(geometry, str) else geometry
    geometry.check()
    return geometry


def _check_target(path, overwrite):
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; overwriting it must be asked for (overwrite=True, --force)"
        )


def _check_disk(path, n_bytes):
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise OSError(
            f"{path}: takes {format_size(n_bytes)}, the disk has {format_size(free)} free; "
            "fewer layers or experts, or a smaller type, take less"
        )


def _padded_bytes(tensor):
    return -(-tensor.n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _write_header(path, architecture, metadata, tensors):
    writer = GGUFWriter(None, architecture, endianess=GGUFEndian.LITTLE)
    try:
        for key, kind, value in metadata:
            writer.add_key_value(key, value, kind)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.spec.name,
                tensor.spec.shape,
                np.dtype(np.float32),  # of the weights: `raw_dtype` says how they are packed
                tensor.n_bytes,
                raw_dtype=tensor.block.qtype,
            )
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _append_tensors(path, geometry, tensors, seed, n_threads, progress):
    total = sum(tensor.n_bytes for tensor in tensors)
    n_written = 0
    with (
        open(path, "ab") as file,
        contextlib.closing(_blocks_in_order(geometry, tensors, seed, n_threads)) as pieces,
    ):
        _pad(file)
        for piece, is_last in pieces:
            file.write(piece)
            n_written += len(piece)
            if is_last:
                _pad(file)
            if progress is not None:
                progress(n_written, total)


def _pad(file):
    file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT))


def _blocks_in_order(geometry, tensors, seed, n_threads):
    """(bytes of a slab, whether it is its tensor's last), made a few slabs ahead by threads."""
    waiting = collections.deque()
    executor = ThreadPoolExecutor(n_threads, "make_gguf")
    try:
        for tensor in tensors:
            parts = slabs(tensor.spec, geometry, seed)
            for index, make in enumerate(parts):
                if len(waiting) > 2 * n_threads:
                    yield _result(waiting)
                job = executor.submit(_pack, make, tensor.block)
                waiting.append((job, index == len(parts) - 1))
        while waiting:
            yield _result(waiting)
    finally:
        executor.shutdown(cancel_futures=True)


def _result(waiting):
    job, is_last = waiting.popleft()
    return job.result(), is_last


def _pack(make, block):
    """The blocks of one slab, as bytes."""
    return memoryview(quantize(make(), block, n_threads=1).data).cast("B")
