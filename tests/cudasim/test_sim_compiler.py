"""Compiling: errors with the source's lines, the disk cache, a machine without a compiler."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from sim_kernels import KERNELS

from lowlevel import cudasim

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILL = 'extern "C" __global__ void fill(int* x, int value) { x[threadIdx.x] = value; }\n'


def _fill(module, name="fill"):
    x = np.zeros(5, np.int32)
    module.get_function(name)((1,), (5,), (x, np.int32(7)))
    assert (x == 7).all()


def _python(code, **environment):
    """Run `code` in a fresh interpreter; its standard output."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDASIM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_errors_show_the_source_s_own_lines(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text(
        "// one\n" + FILL + "__device__ int f() {\n  __shared__ int a[4];\n  return b[0];\n}\n"
    )
    with pytest.raises(
        cudasim.CompileError, match=r"wrong\.cu:5:\d+: error: .b. was not declared|wrong\.cu:5"
    ):
        cudasim.Module(source)
    with pytest.raises(cudasim.CompileError, match=r"text\.cu:1"):
        cudasim.Module("text.cu", code="nonsense;\n")


def test_kernels_are_found_however_they_are_declared():
    code = """
    #include <cuda_fp16.h>
    #define BOUNDS __launch_bounds__(32 * 2, 1)
    extern "C" __global__ void plain(int* x, int value) { x[threadIdx.x] = value; }
    extern "C" __global__ void declared(int* x, int value);  // {
    extern "C" __global__ void declared(int* x, int value) { x[threadIdx.x] = value; }
    extern "C" __global__ BOUNDS void bounds_first(int* x, int) { x[threadIdx.x] = 7; }
    __global__ extern "C" void BOUNDS bounds_last(int* __restrict__ x, const int value = 3)
    {
      x[threadIdx.x] = value;
    }
    extern "C" { __global__ void in_block(int (*x), int value) { x[threadIdx.x] = value; } }
    namespace n { template <class T, int N = 4> __global__ void templated(T* x, T value) { x[threadIdx.x] = value; } }
    """
    module = cudasim.Module("kinds.cu", name_expressions=["n::templated<int>"], code=code)
    for name in (
        "plain",
        "declared",
        "bounds_first",
        "bounds_last",
        "in_block",
        "n::templated<int>",
    ):
        _fill(module, name)
    assert [p.name for p in module.get_function("bounds_last").parameters] == ["x", "value"]
    with pytest.raises(cudasim.KernelLaunchError, match="allows 64"):
        module.get_function("bounds_first")((1,), (65,), (np.zeros(65, np.int32), np.int32(0)))


def test_unknown_kernels_are_named():
    module = cudasim.Module(KERNELS / "q2_k.cu", name_expressions=["dequantize_q2_k<float>"])
    with pytest.raises(
        cudasim.CudaSimError, match="no kernel 'nothing'; there are dequantize_q2_k<float>"
    ):
        module.get_function("nothing")


@pytest.mark.parametrize("kind", ["float", "__half"])
def test_template_instances(rng, kind):
    name = f"dequantize_q2_k<{kind}>"
    module = cudasim.Module(
        KERNELS / "q2_k.cu", name_expressions=["dequantize_q2_k<float>", "dequantize_q2_k<__half>"]
    )
    n_blocks = 37
    blocks = rng.integers(0, 256, (n_blocks, 84), dtype=np.uint8)
    scales = (rng.standard_normal((n_blocks, 2)) * 0.1).astype(np.float16)
    blocks[:, 80:] = scales.view(np.uint8)
    y = cudasim.empty((n_blocks, 2, 4, 2, 16), "float32" if kind == "float" else "float16")
    module.get_function(name)((-(-n_blocks // 4),), (256,), (blocks, y, np.int32(n_blocks)))
    quants = (
        blocks[:, 16:80].reshape(n_blocks, 2, 1, 2, 16)
        >> np.array([0, 2, 4, 6], np.uint8)[:, None, None]
        & 3
    )
    factors = blocks[:, :16].reshape(n_blocks, 2, 4, 2, 1)
    d, dmin = (scales[:, i].astype(np.float32).reshape(n_blocks, 1, 1, 1, 1) for i in range(2))
    expected = (d * (factors & 15)) * quants - dmin * (factors >> 4)
    np.testing.assert_array_equal(y, expected.astype(y.dtype))


def test_shared_declarations_of_every_shape():
    """Declared in macros, headers, templates, namespaces, loops; with attributes and qualifiers."""
    code = """
    #define DECLARE(T, NAME) __shared__ T NAME[2]
    namespace inner {
    template <class T, int N> struct Box { T values[N]; };
    template <class T, int N> __device__ T twice(T v) {
      constexpr int size = N * 2;
      __shared__ volatile T own[size]; __shared__ Box<T, (N > 2 ? 4 : 1)> box;
      own[0] = v; box.values[0] = v;
      __syncwarp();
      return own[0] + box.values[0];
    }
    }
    extern "C" __global__ void declare(float* out) {
      DECLARE(float, a);
      static __shared__ __align__(16) unsigned char b[3][5], *c, d;
      __shared__ struct { int x; float y; } e;
      double __shared__ f[1];
      for (int i = 0; i < 2; ++i) { __shared__ int counter[1]; counter[0] = i; d = counter[0]; }
      a[1] = 2; b[2][4] = 3; c = &b[2][4]; e.y = 4; f[0] = sizeof(a) + sizeof(b);
      out[0] = a[1] + *c + d + e.y + (float)f[0];
      out[1] = inner::twice<float, 3>(1) + inner::twice<float, 1>(10) + inner::twice<int, 3>(100);
      out[2] = ((size_t)b % 16 == 0);
    }
    """
    for race in (False, True):
        with cudasim.settings(race=race):
            out = np.zeros(3, np.float32)
            cudasim.Module("declare.cu", code=code).get_function("declare")((1,), (1,), (out,))
        assert out.tolist() == [2 + 3 + 1 + 4 + 8 + 15, 2 + 20 + 200, 1]


def test_included_files_are_part_of_the_content(tmp_path, cache):
    (tmp_path / "value.cuh").write_text("#define VALUE 1\n")
    source = tmp_path / "k.cu"
    source.write_text(
        '#include "value.cuh"\nextern "C" __global__ void put(int* x) { x[0] = VALUE; }\n'
    )
    for value in (1, 2, 1):
        (tmp_path / "value.cuh").write_text(f"#define VALUE {value}\n")
        x = np.zeros(1, np.int32)
        cudasim.Module(source).get_function("put")((1,), (1,), (x,))
        assert x[0] == value
    assert len(list(cache.glob("library-*.so"))) == 2  # and a runner


def test_cache_is_used_and_shared_by_processes(cache):
    code = f"""
        import numpy as np
        from lowlevel import cudasim
        module = cudasim.Module("fill.cu", code={FILL!r})
        x = np.zeros(3, np.int32)
        module.get_function("fill")((1,), (3,), (x, np.int32(5)))
        assert (x == 5).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    files = sorted(
        path.name.split("-")[0] for path in cache.iterdir() if not path.name.endswith(".lock")
    )
    assert files == ["library", "runner"]
    # A second time nothing is compiled: no compiler would be found to do it.
    made = {path: path.stat().st_ino for path in cache.glob("*.so")}
    _fill(cudasim.Module("fill.cu", code=FILL))
    assert {path: path.stat().st_ino for path in cache.glob("*.so")} == made


def test_read_only_cache_folder(cache, tmp_path):
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # Root writes anywhere: a folder below a file stands for what nobody can write.
    (tmp_path / "file").write_text("")
    for folder in (cache, tmp_path / "file" / "below"):
        out = _python(
            f"""
            import numpy as np
            from lowlevel import cudasim
            module = cudasim.Module("fill.cu", code={FILL!r})
            x = np.zeros(3, np.int32)
            module.get_function("fill")((1,), (3,), (x, np.int32(5)))
            print(x.sum(), module.library(False, False).parent)
            """,
            CUDASIM_CACHE_DIR=str(folder),
            TMPDIR=str(tmp_path),
        )
        total, used = out.split()
        assert total == "15"
        if folder.name == "below":
            assert pathlib.Path(used) == tmp_path / f"kqcap-{os.getuid()}" / "cudasim"


def test_from_within_a_zip_it_says_so(tmp_path):
    """No compiler can read what lies there."""
    with zipfile.ZipFile(tmp_path / "kqcap.zip", "w") as file:
        for path in sorted((ROOT / "lowlevel").rglob("*.py")):
            file.write(path, path.relative_to(ROOT))
    out = _python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "kqcap.zip")!r})
        from lowlevel import cudasim
        try:
            cudasim.Module("fill.cu", code={FILL!r})
        except cudasim.CudaSimError as error:
            print(error)
        """
    )
    assert "kqcap.zip" in out and "unzipped" in out


def test_no_compiler_says_what_to_install():
    out = _python(
        f"""
        from lowlevel import cudasim
        try:
            cudasim.Module("fill.cu", code={FILL!r})
        except cudasim.CompilerNotFoundError as error:
            print(error)
        """,
        PATH="/nowhere",
    )
    assert "apt install g++" in out and "CUDASIM_CXX" in out
    out = _python(
        f"""
        from lowlevel import cudasim
        try:
            cudasim.Module("fill.cu", code={FILL!r})
        except cudasim.CompilerNotFoundError as error:
            print(error)
        """,
        CUDASIM_CXX="no-such-compiler",
    )
    assert "names 'no-such-compiler', which is not there" in out


def _assert_pass(wanted, compiler):
    """Tests of this folder pass with kernels compiled by `compiler`."""
    tests = [str(pathlib.Path(__file__).parent / name) for name in wanted]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDASIM_CXX": compiler},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-3000:]


def test_portable_forms_where_the_machine_is_another(tmp_path):
    """Fibers through ucontext and 16-bit floats without F16C: what other processors than x86-64 run."""
    compiler = tmp_path / "portable-g++"
    compiler.write_text('#!/bin/sh\nexec g++ -DCUDASIM_UCONTEXT -mno-f16c -mno-avx512f "$@"\n')
    compiler.chmod(0o755)
    wanted = [
        "test_sim_seam.py",
        "test_sim_intrinsics.py::test_conversions",
        "test_sim_barriers.py::test_correct_kernels",
    ]
    _assert_pass(wanted, str(compiler))


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ here")
def test_clang_too():
    """Correct kernels in every order and mode; races, barriers and accesses out of bounds are found."""
    wanted = [
        *(
            f"test_sim_{name}.py::test_correct_kernel_passes"
            for name in ("barriers", "memory", "shared")
        ),
        "test_sim_shared.py::test_race_of_a_block_reduction",
        "test_sim_barriers.py::test_planted_bugs",
        "test_sim_memory.py::test_race_mode_sees_both_sides_in_every_order",
        "test_sim_shared.py::test_gemm_passes_in_race_mode",
    ]
    _assert_pass(wanted, "clang++")


def test_import_needs_neither_numba_nor_scipy_nor_cupy():
    out = _python(
        """
        import sys
        import lowlevel.cudasim
        print([name for name in ("numba", "scipy", "cupy", "torch") if name in sys.modules])
        """
    )
    assert out.strip() == "[]"


def test_many_threads_of_python_share_the_runners():
    import threading

    module = cudasim.Module("fill.cu", code=FILL)
    results = [np.zeros(64, np.int32) for _ in range(6)]

    def work(index):
        for _ in range(5):
            module.get_function("fill")((1,), (64,), (results[index], np.int32(index)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((result == index).all() for index, result in enumerate(results))
