"""Times the fused attention kernel against the peers and the bf16 ceiling; run on a GPU, from the
repository's root: ``python tests/gpu_results/attention_kernels.py OUT.json``."""

import json
import math
import subprocess
import sys

import cupy
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, ".")
from lowlevel.cuda import attention as launches, loader  # noqa: E402

VARIANTS = {
    "128x64, 4 warps, 2 blocks": (128, 64, 4, 2),
    "256x64, 8 warps, 1 block": (256, 64, 8, 1),
}


def median_ms(call, n=5):
    call()
    times = []
    for _ in range(n):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[n // 2]


def compiled(d_k, d_v, rows, keys, warps, blocks):
    defines = dict(TILE_ROWS=rows, TILE_KEYS=keys, WARPS=warps, BLOCKS_PER_SM=blocks)
    options = ["-std=c++17", *(f"-D{name}={value}" for name, value in defines.items())]
    name = "attention_fused<Bfloat16, false>"
    module = cupy.RawModule(
        code=loader.source_text("lowlevel.cuda", f"attention_{d_k}_{d_v}.cu"),
        options=tuple(options),
        name_expressions=[name],
    )
    kernel = module.get_function(name)
    shared = 2 * (rows * d_k + keys * (d_k + d_v))
    kernel.max_dynamic_shared_size_bytes = shared
    return kernel, shared


def fused(variant, q, k, v, out, causal=True):
    rows, keys, warps, blocks = variant
    (n_head, n_tokens, d_k), (n_head_kv, n_kv, d_v) = q.shape, v.shape
    kernel, shared = compiled(d_k, d_v, *variant)
    group = n_head // n_head_kv
    call = np.zeros((), launches.CALL)
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        for field, stride in zip(launches.STRIDES[name], x.stride(), strict=False):
            call[field] = stride
    tile_tokens = min(n_tokens, rows // group)
    for field, value in dict(
        n_head_kv=n_head_kv, group=group, n_tokens=n_tokens, n_keys=n_kv, tile_heads=group,
        tile_tokens=tile_tokens, head_tiles=1, token_tiles=-(-n_tokens // tile_tokens), splits=1,
        keys_per_split=n_kv, first_position=n_kv - n_tokens, causal=causal, window=2**31 - 1, aligned=1,
        out_is_float32=0, resume=0, finish=1, scale=1 / math.sqrt(d_k), softcap=0,
    ).items():  # fmt: skip
        call[field] = value
    grid = n_head_kv * int(call["token_tiles"])
    null, pointers = np.uintp(0), [np.uintp(x.data_ptr()) for x in (q, k, v, out)]
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def run():
        with stream:
            kernel(
                (grid,),
                (warps * 32,),
                (*pointers, null, null, null, null, null, null, call),
                shared_mem=shared,
            )

    return run, kernel


def head_split(q, k, v, out):
    """The PR's steps with float32 scores: one head at a time (1280 MiB at 163840 x 2048)."""
    n_tokens, n_kv = q.shape[1], k.shape[1]
    position = torch.arange(n_kv - n_tokens, n_kv, device="cuda")[:, None]
    keep = torch.arange(n_kv, device="cuda")[None, :] <= position
    bias = torch.zeros(keep.shape, device="cuda").masked_fill_(~keep, float("-inf"))
    scale = 1 / math.sqrt(q.shape[2])

    def run():
        for h in range(q.shape[0]):
            kq = torch.mm(q[h], k[h].T, out_dtype=torch.float32)
            kq.mul_(scale).add_(bias)
            torch.softmax(kq, -1, out=kq)
            torch.mm(kq.to(q.dtype), v[h], out=out[h])

    return run


def peer(backend, q, k, v, causal):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    v_padded = F.pad(v, (0, q.shape[2] - v.shape[2])) if backend == "FLASH_ATTENTION" else v
    bias = causal_lower_right(q.shape[1], k.shape[1]) if causal else None

    def run():
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q[None], k[None], v_padded[None], attn_mask=bias)

    return run


def attempt(results, name, make, flop, rounds=3):
    try:
        ms = median_ms(make(), rounds)
        results[name] = dict(ms=round(ms, 3), tflops=round(flop / ms / 1e9, 1))
    except Exception as error:
        results[name] = dict(error=f"{type(error).__name__}: {str(error)[:150]}")
    print("  ", name, results[name], flush=True)


def check(q, k, v, out):
    """Error of some heads and rows against float64, over the largest value."""
    worst = 0.0
    n_tokens, n_kv = q.shape[1], k.shape[1]
    for head in (0, q.shape[0] - 1):
        head_kv = head // (q.shape[0] // k.shape[0])
        rows = torch.tensor([0, 1, n_tokens // 2, n_tokens - 1], device="cuda")
        s = q[head, rows].double() @ k[head_kv].double().T / math.sqrt(q.shape[2])
        s = s.masked_fill(
            torch.arange(n_kv, device="cuda")[None] > (rows + n_kv - n_tokens)[:, None], -math.inf
        )
        expected = torch.softmax(s, -1) @ v[head_kv].double()
        worst = max(
            worst, float((out[head, rows].double() - expected).abs().max() / expected.abs().max())
        )
    return worst


def main(path):
    results = dict(
        device=torch.cuda.get_device_name(), torch=torch.__version__, cupy=cupy.__version__,
        driver=subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip(),
    )  # fmt: skip
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    attempt(results, "matmul 8192", lambda: lambda: a @ b, 2 * 8192**3, 10)
    del a, b
    for n_head, n_head_kv, n_kv, d_k, d_v in CASES:
        n_tokens = 2048
        make = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        q, k, v = (
            make(n_head, n_tokens, d_k),
            make(n_head_kv, n_kv, d_k),
            make(n_head_kv, n_kv, d_v),
        )
        out = torch.full((n_head, n_tokens, d_v), float("nan"), device="cuda", dtype=torch.bfloat16)
        flop = 2 * n_head * (d_k + d_v) * n_tokens * (n_kv - n_tokens / 2 + 0.5)
        case = results[
            f"{n_head}/{n_head_kv} heads {d_k}/{d_v}, {n_tokens} tokens, {n_kv} keys"
        ] = {}
        print(list(results)[-1], flush=True)
        for name, variant in VARIANTS.items():
            out.fill_(float("nan"))
            attempt(case, name, lambda variant=variant: fused(variant, q, k, v, out)[0], flop)
            if "ms" in case[name]:
                case[name]["error_vs_float64"] = check(q, k, v, out)
                kernel = fused(variant, q, k, v, out)[1]
                case[name].update(registers=kernel.num_regs, local_bytes=kernel.local_size_bytes)
                print(
                    "     ",
                    case[name]["error_vs_float64"],
                    kernel.num_regs,
                    kernel.local_size_bytes,
                )
        if n_head == n_head_kv:
            for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
                attempt(
                    case, f"torch {backend} lower right", lambda: peer(backend, q, k, v, True), flop
                )
                attempt(
                    case,
                    f"torch {backend} all keys",
                    lambda: peer(backend, q, k, v, False),
                    flop * n_kv / (n_kv - n_tokens / 2 + 0.5),
                )
            few = min(n_head, 4)
            attempt(
                case,
                "torch head-split f32 (4 heads)",
                lambda: head_split(q[:few], k[:few], v[:few], out[:few]),
                flop * few / n_head,
            )
        del q, k, v, out
        torch.cuda.empty_cache()
        with open(path, "w") as file:
            json.dump(results, file, indent=1)


CASES = (
    (16, 16, 16384, 192, 128),
    (128, 128, 16384, 192, 128),
    (16, 16, 163840, 192, 128),
    (32, 8, 16384, 128, 128),
)
if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[2] == "full":
        CASES += ((128, 128, 163840, 192, 128),)
    main(sys.argv[1])
