"""One prompt through one engine, in a process of its own: ``python peer_child.py JOB`` (peers.py writes the job)."""

import ctypes
import json
import sys

import numpy as np


def main(job):
    *before, library = job["libraries"]
    for path in before:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    engine = {"llama.cpp": LlamaCpp, "ik_llama.cpp": Ik}[job["engine"]](library)
    engine.lib.llama_backend_init()
    models = [engine.load(path.encode(), job) for path in job["paths"]]
    if not job["tokens"]:
        return np.save(job["out"], [bool(model) for model in models])
    if not models[0]:
        sys.exit("the file was not loaded")
    np.save(job["out"], logits(engine, models[0], job))


def logits(engine, model, job):
    lib, tokens = engine.lib, job["tokens"]
    params = lib.llama_context_default_params()
    params.n_ctx = job["n_ctx"]
    params.n_batch = job["n_ctx"]
    params.n_ubatch = job["n_ubatch"]
    params.n_threads = params.n_threads_batch = job["n_threads"]
    params.type_k, params.type_v = job["type_k"], job["type_v"]
    engine.set_attention(params, job)
    context = lib.llama_init_from_model(model, params)
    if not context:
        sys.exit("there is no context for it")
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index] = token
        batch.pos[index] = index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = 1
    if failed := lib.llama_decode(context, batch):
        sys.exit(f"llama_decode says {failed}")
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    return engine.logits(context, len(tokens) * n_vocab).reshape(len(tokens), n_vocab)


class LlamaCpp:
    def __init__(self, library):
        # The header, as it was generated for the wheel's own library.
        from llama_cpp_py_sync._cffi_bindings import ffi

        self.ffi, self.lib = ffi, ffi.dlopen(library)

    def load(self, path, job):
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = (
            False  # repacked weights take other products than the file's types say
        )
        return self.lib.llama_model_load_from_file(path, params)

    def set_attention(self, params, job):
        params.flash_attn_type = int(job["flash_attention"])

    def logits(self, context, n):
        found = self.ffi.buffer(self.lib.llama_get_logits(context), 4 * n)
        return np.frombuffer(found, np.float32)


class Ik:
    def __init__(self, library):
        import ik_llama_cpp._ctypes_api as lib

        self.lib = lib
        self.get_logits = lib._lib.llama_get_logits
        self.get_logits.argtypes = [ctypes.c_void_p]
        self.get_logits.restype = ctypes.POINTER(ctypes.c_float)

    def load(self, path, job):
        params = self.lib.llama_model_default_params()
        params.mla = job["mla"]
        return self.lib.llama_model_load_from_file(path, params)

    def set_attention(self, params, job):
        params.flash_attn = job["flash_attention"]
        params.mla_attn = job["mla"]

    def logits(self, context, n):
        return np.ctypeslib.as_array(self.get_logits(context), (n,))


main(json.loads(sys.argv[1]))
