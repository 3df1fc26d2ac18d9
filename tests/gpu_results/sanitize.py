"""On a GPU: each kernel once under compute-sanitizer: memcheck, racecheck and synccheck.

    python tests/gpu_results/sanitize.py [--tools memcheck,racecheck,synccheck] [--seconds 120]

The tests that launch every instance, and those of a plain call of each path, run in processes side by
side, one a test module and tool. Writes sanitizer.json into $OUT if that is set; 1 if anything was found, a test
did not run, or a tool saw no launch of a kernel of `instances.all_kernels()`. Each process loads this file as
a plugin of pytest too, which notes what is launched.

    python tests/gpu_results/sanitize.py --plain [--device cudasim]

runs the same tests without a tool, to see what they launch: on the simulator without a GPU.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CUDA = "tests/cuda"
# module -> tests by pytest's -k: those that launch every kernel of the module
JOBS = {
    "test_attention_fused.py": "test_every_instance or test_splits_of_keys",
    "test_attention_tiles.py": "test_every_instance",
    "test_attention_decoded.py": "test_few_tokens_split_the_keys",
    "test_cuda_copies.py": "test_every_instance or test_every_transposed or test_every_join",
    "test_cuda_dequantize.py": "test_every_instance",
    "test_cuda_matmul.py": "test_every_instance",
    "test_keys_on_device.py": "test_keys_are_counted and not latent",
    "test_latent_device.py": "test_states_are_joined or test_casts",
    "test_matmul_wgmma.py": "test_every_instance or test_every_sort",
    "test_ops_device.py": "test_every_kernel_is_launched",
}
_NOTES = "KQCAP_LAUNCHED"  # the file that the plugin writes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default="memcheck,racecheck,synccheck")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--plain", action="store_true", help="no tool: which kernels are launched")
    parser.add_argument("--device", default="cuda:0", help="with --plain: or cudasim")
    options = parser.parse_args()
    tools = ["plain"] if options.plain else options.tools.split(",")
    jobs = [(tool, module) for tool in tools for module in JOBS]
    n_at_once = 1 if options.plain else len(jobs)
    with concurrent.futures.ThreadPoolExecutor(n_at_once) as pool:
        results = list(pool.map(lambda job: run(*job, options), jobs))
    for result in results:
        print(
            "{tool:10} {module:28} rc {rc} {seconds:.0f} s: {summary}; {passed} passed, "
            "{skipped} skipped, {n_launched} kernels".format(
                **result, n_launched=len(result["launched"])
            )
        )
    missing = {tool: not_launched(results, tool) for tool in tools}
    for tool, keys in missing.items():
        print(f"{tool}: not launched: {', '.join(keys) or 'none, all were'}")
    out = pathlib.Path(os.environ.get("OUT", "."))
    (out / "sanitizer.json").write_text(
        json.dumps(dict(results=results, not_launched=missing), indent=1)
    )
    bad = any(result["rc"] or not result["passed"] or result["skipped"] for result in results)
    return int(bad or any(missing.values()))


def run(tool, module, options):
    of_device = ["-m", "gpu"] if options.device != "cudasim" else ["-m", "not gpu"]
    command = [
        sys.executable, "-m", "pytest", *of_device, "-rs", "-v", "-p", "no:cacheprovider",
        "-p", "sanitize", "-k", JOBS[module], f"{CUDA}/{module}",
    ]  # fmt: skip
    if tool != "plain":
        command = [
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "99",
            "--kernel-name-exclude", "kernel_substring=cupy_", *command,
        ]  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notes = pathlib.Path(folder) / "launched.json"
        here = pathlib.Path(__file__).parent
        path = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
        try:
            result = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=options.seconds, env={**os.environ, "PYTHONPATH": path, _NOTES: str(notes)},
            )  # fmt: skip
            text, rc = result.stdout, result.returncode
        except subprocess.TimeoutExpired as reason:
            text, rc = (reason.stdout or b"").decode(errors="replace"), 124
        launched = json.loads(notes.read_text()) if notes.exists() else []
    counts = {word: counted(word, text) for word in ("passed", "skipped")}
    summaries = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*", text)
    return dict(
        tool=tool, module=module, rc=rc, **counts, seconds=time.perf_counter() - start,
        summary=summaries[-1].lstrip("= ") if summaries else "no summary",
        launched=launched, tail="" if rc == 0 else text[-6000:],
    )  # fmt: skip


def counted(word, text):
    """Tests of that outcome, by pytest's last line."""
    found = re.findall(rf"\b([0-9]+) {word}\b", text)
    return int(found[-1]) if found else 0


def not_launched(results, tool):
    """Keys of the kernels that no process of a tool launched."""
    sys.path.insert(0, str(ROOT))
    import quant.gpu  # noqa: F401  (its kernels are registered)
    from lowlevel.gpu import instances, resources

    launched = {key for result in results if result["tool"] == tool for key in result["launched"]}
    return sorted({resources.key_of(kernel) for kernel in instances.all_kernels()} - launched)


# ---------------------------------------------------------------- the plugin's part


def pytest_configure(config):
    from lowlevel.gpu import resources
    from lowlevel.gpu.kernel_device import KernelDevice

    launch, config.launched = KernelDevice.launch, set()

    def noted(device, kernel, *arguments, **options):
        launch(device, kernel, *arguments, **options)
        config.launched.add(resources.key_of(kernel))

    KernelDevice.launch = noted


def pytest_unconfigure(config):
    pathlib.Path(os.environ[_NOTES]).write_text(json.dumps(sorted(config.launched)))


if __name__ == "__main__":
    sys.exit(main())
