"""One prompt through one engine, in a process of its own: ``python peer_child.py JOB`` (peers.py writes the job)."""

import ctypes
import json
import sys

import numpy as np


def main(job):
    *before, library = job["libraries"]
    for path in before:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    run = {"llama.cpp": llama_cpp, "ik_llama.cpp": ik}[job["engine"]]
    np.save(job["out"], run(job, library))


def llama_cpp(job, library):
    from llama_cpp_py_sync._cffi_bindings import (
        ffi,
    )  # its header, generated for the wheel's own library

    lib = ffi.dlopen(library)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.use_extra_bufts = False  # repacked weights take other products than the file's types say
    model = lib.llama_model_load_from_file(job["path"].encode(), params)
    if model == ffi.NULL:
        sys.exit("the file was not loaded")
    params = lib.llama_context_default_params()
    _set_context(params, job)
    params.flash_attn_type = int(job["flash_attention"])
    context = lib.llama_init_from_model(model, params)
    if context == ffi.NULL:
        sys.exit("there is no context for it")
    n_tokens = len(job["tokens"])
    batch = lib.llama_batch_init(n_tokens, 0, 1)
    _fill(batch, job["tokens"])
    if failed := lib.llama_decode(context, batch):
        sys.exit(f"llama_decode says {failed}")
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    logits = ffi.buffer(lib.llama_get_logits(context), 4 * n_tokens * n_vocab)
    return np.frombuffer(logits, np.float32).reshape(n_tokens, n_vocab)


def ik(job, library):
    import ik_llama_cpp._ctypes_api as lib

    get_logits = lib._lib.llama_get_logits
    get_logits.argtypes, get_logits.restype = [ctypes.c_void_p], ctypes.POINTER(ctypes.c_float)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.mla = job["mla"]
    model = lib.llama_model_load_from_file(job["path"].encode(), params)
    if not model:
        sys.exit("the file was not loaded")
    params = lib.llama_context_default_params()
    _set_context(params, job)
    params.flash_attn = job["flash_attention"]
    params.mla_attn = job["mla"]
    context = lib.llama_init_from_model(model, params)
    if not context:
        sys.exit("there is no context for it")
    n_tokens = len(job["tokens"])
    batch = lib.llama_batch_init(n_tokens, 0, 1)
    _fill(batch, job["tokens"])
    if failed := lib.llama_decode(context, batch):
        sys.exit(f"llama_decode says {failed}")
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(get_logits(context), (n_tokens, n_vocab))


def _set_context(params, job):
    params.n_ctx = job["n_ctx"]
    params.n_batch = job["n_ctx"]
    params.n_ubatch = job["n_ubatch"]
    params.n_threads = params.n_threads_batch = job["n_threads"]
    params.type_k, params.type_v = job["type_k"], job["type_v"]


def _fill(batch, tokens):
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index] = token
        batch.pos[index] = index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = 1


main(json.loads(sys.argv[1]))
