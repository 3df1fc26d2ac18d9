"""How ik_llama.cpp's library, out of its wheel, reads and writes the text of a model file.

It runs in a process of its own (this file as a program): where it is not sure of a file, it aborts. Its vocabulary
is llama.cpp's code, and needs no newer glibc than there is, as llama.cpp's wheel does.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import NamedTuple

__all__ = ["PeerTokens", "ask"]

TIMEOUT = 300  # seconds


class PeerTokens(NamedTuple):
    """Its answers.

    Attributes
    ----------
    n_vocab : int
    ids : list of list of int
        Of each text.
    pieces, special_pieces : list of bytes
        Of each token, without and with the names of control tokens.
    texts : list of bytes
        Of each list of ids to decode.
    eos_ids : set of int
    """

    n_vocab: int
    ids: list[list[int]]
    pieces: list[bytes]
    special_pieces: list[bytes]
    texts: list[bytes]
    eos_ids: set[int]


def ask(path: os.PathLike[str], texts, decode=()) -> PeerTokens:
    """Its answers on one file; skips the test where the wheel is not installed, or fails it where CI is set.

    Parameters
    ----------
    path : path
    texts : sequence of (str, bool, bool)
        A text, add_special, parse_special.
    decode : sequence of list of int
        Ids whose text is asked for.

    Raises
    ------
    PeerError
        It does not load the file; the message ends with what it said.
    """
    import pytest
    from peers import IK, PeerError, missing

    if reason := missing(IK):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    job = json.dumps({"path": os.fspath(path), "texts": list(texts), "decode": list(decode)})
    child = subprocess.run(
        [sys.executable, __file__], input=job.encode(), capture_output=True, timeout=TIMEOUT
    )
    if child.returncode:
        raise PeerError(child.stderr.decode(errors="replace")[-2000:])
    answer = json.loads(child.stdout)
    of_bytes = {
        key: [bytes.fromhex(text) for text in answer.pop(key)]
        for key in ("pieces", "special_pieces", "texts")
    }
    return PeerTokens(eos_ids=set(answer.pop("eos_ids")), **answer, **of_bytes)


# ---------------------------------------------------------------- in the child


def main() -> None:
    """Reads a job from standard input, writes the answer to standard output."""
    import ik_llama_cpp._ctypes_api as api

    library, address, i32, flag = api._lib, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    ids_of, text_of = ctypes.POINTER(i32), ctypes.c_char_p
    signatures = {  # the first argument is the model, of llama_detokenize the vocabulary
        "llama_tokenize": ([address, text_of, i32, ids_of, i32, flag, flag], i32),
        "llama_token_to_piece": ([address, i32, text_of, i32, i32, flag], i32),
        "llama_detokenize": ([address, ids_of, i32, text_of, i32, flag, flag], i32),
        "llama_token_is_eog": ([address, i32], flag),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    job = json.load(sys.stdin)
    params = api.llama_model_default_params()
    params.vocab_only = True
    model = api.llama_model_load_from_file(job["path"].encode(), params)
    if not model:
        sys.exit("the file was not loaded")
    vocab = api.llama_model_get_vocab(model)
    n_vocab = api.llama_vocab_n_tokens(vocab)

    def encode(text, add_special, parse_special):
        data = text.encode()
        ids = (i32 * (len(data) + 8))()
        count = library.llama_tokenize(
            model, data, len(data), ids, len(ids), add_special, parse_special
        )
        return list(ids[:count])

    piece_text = ctypes.create_string_buffer(1 << 14)

    def piece(token, special):
        count = library.llama_token_to_piece(model, token, piece_text, len(piece_text), 0, special)
        return piece_text[:count].hex()

    def decode(ids):
        text = ctypes.create_string_buffer(1 << 18)
        count = library.llama_detokenize(
            vocab, (i32 * len(ids))(*ids), len(ids), text, len(text), False, False
        )
        return text[:count].hex()

    answer = {
        "n_vocab": n_vocab,
        "ids": [encode(*text) for text in job["texts"]],
        "pieces": [piece(token, False) for token in range(n_vocab)],
        "special_pieces": [piece(token, True) for token in range(n_vocab)],
        "texts": [decode(ids) for ids in job["decode"]],
        "eos_ids": [token for token in range(n_vocab) if library.llama_token_is_eog(model, token)],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
