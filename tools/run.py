"""``kqcap run``: a prompt through a model file, its continuation as it comes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from . import loading, ranks
from .options import INTERRUPTED, UsageError, new_parser, positive, whole_numbers
from .token_bar import token_bar

if TYPE_CHECKING:
    from typing import Any

    from quant.models.model import Model
    from quant.models.tokenizer import Tokenizer

DESCRIPTION = """\
Run a model file: the prompt in, its continuation on standard output as it comes. What it takes of memory
is said before, speed and memory really used after, both on standard error."""

EPILOG = """\
speed line: pp t/s of the prompt, tg t/s of what follows the first token; at the first run for a CPU kernels
are compiled, once, and that counts there. Checked limits (exit code 1): compute memory and the pool's peak
within what was planned.

examples:
  kqcap run model.gguf "Once upon a time" -n 64
  kqcap run model.gguf --chat "Why is the sky blue?" --temp 0.7 --top-p 0.9 --seed 1
  kqcap run model.gguf --budget 512MiB -c 16384 - < long_prompt.txt
  kqcap run model.gguf --random 600 -n 8 --json
  kqcap run model.gguf --tokens ids.txt --logits logits.npy
  mpirun -n 2 kqcap run model.gguf "Once upon a time" --split tensor"""

DEFAULT_TOKENS = 128


class Prompt(NamedTuple):
    """Tokens, and the tokenizer that turns what follows into text; None: ids come out."""

    tokens: list[int]
    tokenizer: Tokenizer | None
    stop: Any


def add_parser(subparsers: Any) -> None:
    parser = new_parser(
        subparsers,
        "run",
        help="a prompt through a model file: text in, text out",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="GGUF file, or any part of a split one")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text; -: standard input")
    parser.add_argument(
        "-n",
        "--n-predict",
        metavar="N",
        type=_count,
        help=f"tokens to generate at most (default: {DEFAULT_TOKENS}; with --logits none)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="PROMPT as a user's message, by the file's chat template",
    )
    parser.add_argument("--system", metavar="TEXT", help="with --chat: a system message before it")
    parser.add_argument(
        "--tokens",
        metavar="FILE",
        help="token ids instead of text (-: standard input); ids come out",
    )
    parser.add_argument(
        "--random", metavar="N", type=positive, help="N random token ids instead; ids come out"
    )
    parser.add_argument(
        "--logits", metavar="OUT.npy", help="write logits of every token of the prompt, float32"
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="do not stop where the model would"
    )
    sampling = parser.add_argument_group(
        "which token comes next", "by default the most probable one"
    )
    sampling.add_argument(
        "--temp", type=float, metavar="T", default=0.0, help="temperature; 0: none"
    )
    sampling.add_argument("--top-k", type=int, metavar="N", default=0, help="0: all")
    sampling.add_argument("--top-p", type=float, metavar="P", default=1.0, help="1: all")
    sampling.add_argument("--min-p", type=float, metavar="P", default=0.0, help="0: all")
    sampling.add_argument("--seed", type=int, metavar="N", help="of the draw, and of --random")
    loading.add_options(parser)


def _count(text):
    values = whole_numbers(0)(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a list; give one number")
    return values[0]


def run(args: argparse.Namespace) -> int:
    from quant.models.sampling import SamplingParams

    sampling = SamplingParams(args.temp, args.top_k, args.top_p, args.min_p, args.seed)
    prompt = _prompt_of_ranks(args)
    n = args.n_predict
    if n is None:
        n = 0 if args.logits else DEFAULT_TOKENS
    with loading.opened(args, loading.complain, _n_ctx(args, len(prompt.tokens) + n)) as net:
        if not args.json:
            loading.complain(_model_line(net, len(prompt.tokens)))
            loading.complain(loading.memory_lines(net))
        session = Session(net, prompt, args)
        try:
            session.prefill()
            session.generate(n, sampling)
        except KeyboardInterrupt:
            session.interrupted = True
        return session.finish()


def _n_ctx(args, n_needed):
    """None where the library's default does: what the prompt and its continuation take must fit."""
    import quant
    from quant.models.model import DEFAULT_CONTEXT

    if args.ctx_size is not None:
        return args.ctx_size
    with quant.open(args.model) as file:
        own = file.attention.context_length
    return n_needed if min(own, DEFAULT_CONTEXT) < n_needed <= own else None


def _model_line(net, n_prompt):
    c = net.choices
    amb = "none" if c.amb is None else f"{c.amb // 2**20} MiB"
    latent = f", mla {c.mla}" if net.config.layers[0].is_latent else ""
    comm = net.comm
    where = f"{net.n_threads} threads" if net.n_threads else ", ".join(net.memory_of)
    split = "" if comm is None else f"; {comm.size} ranks, split by {c.split}"
    return (
        f"{net.config.architecture}, {len(net.config.layers)} layers; context {c.n_ctx}, u-batch {c.n_ubatch}, "
        f"amb {amb}, K/V {c.kv_type.name}{latent}, {where}{split}; prompt {n_prompt} tokens"
    )


# ---------------------------------------------------------------- the prompt


def _prompt_of_ranks(args):
    """The prompt; ranks beside the first have the ids alone, and tell nobody what follows."""
    own: list[Prompt] = []

    def make():
        own.append(_prompt(args))
        return own[0]._replace(tokenizer=None)

    given = ranks.of_first(args, make)
    return own[0] if own else given


def _prompt(args):
    given = {
        "PROMPT": args.prompt is not None,
        "--tokens": args.tokens is not None,
        "--random": args.random is not None,
    }
    named = [name for name, there in given.items() if there]
    if len(named) != 1:
        raise UsageError(
            f"one of PROMPT, --tokens, --random; got {' and '.join(named) if named else 'none of them'}"
        )
    if args.system is not None and not args.chat:
        raise UsageError("--system: for --chat")
    if args.chat and args.prompt is None:
        raise UsageError(f"--chat: for a text; {named[0]} gives token ids")
    import quant
    from quant.models.tokenizer import Tokenizer

    with quant.open(args.model) as file:
        metadata = file.metadata
        if args.prompt is None:
            ids = _ids_of(args.tokens) if args.tokens else _random_ids(file, args)
            knows_ends = "tokenizer.ggml.model" in metadata and not args.ignore_eos
            return Prompt(ids, None, None if knows_ends else ())
        tokenizer = Tokenizer.from_metadata(metadata)
    text = _read(args.prompt) if args.prompt == "-" else args.prompt
    try:
        ids = _encoded(tokenizer, text, args)
    except ImportError as error:
        raise UsageError(str(error)) from None
    if not ids:
        raise UsageError(
            "PROMPT: it is empty, and the model begins a text with no token of its own"
        )
    return Prompt(ids, tokenizer, () if args.ignore_eos else None)


def _encoded(tokenizer, text, args):
    if not args.chat:
        return tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return tokenizer.encode_chat(messages)


def _read(name):
    if name == "-":
        return sys.stdin.read()
    with open(name, encoding="utf-8") as file:
        return file.read()


def _ids_of(name):
    words = _read(name).replace(",", " ").split()
    try:
        ids = [int(word) for word in words]
    except ValueError:
        bad = next(word for word in words if not word.lstrip("-").isdigit())
        raise UsageError(f"--tokens {name}: {bad[:40]!r} is no token id") from None
    if not ids:
        raise UsageError(f"--tokens {name}: there are no token ids in it")
    return ids


def _random_ids(file, args):
    import numpy as np

    if "token_embd.weight" not in file:
        raise UsageError(f"{args.model}: it has no token_embd.weight: it is no whole model")
    n_vocab = file.tensor_info("token_embd.weight").shape[0]
    return np.random.default_rng(args.seed or 0).integers(0, n_vocab, args.random).tolist()


# ---------------------------------------------------------------- running


class Session:
    """One prompt and what follows it: what is said of it while it runs, and after."""

    def __init__(self, net: Model, prompt: Prompt, args: argparse.Namespace) -> None:
        self.net, self.prompt, self.args = net, prompt, args
        self.made: list[int] = []
        self.text = ""
        self.interrupted = False
        self._ids_before_logits: list[int] = prompt.tokens
        self._prompt_seconds = self._made_seconds = 0.0
        self._decoder = prompt.tokenizer.stream() if prompt.tokenizer else None

    def prefill(self) -> None:
        """With ``--logits`` the prompt's passes on their own: the file appears when it is whole."""
        if self.args.logits is None:
            return
        import numpy as np

        path, tokens = self.args.logits, self.prompt.tokens
        if not ranks.is_first(self.args):
            self.net.prefill(tokens, all_logits=True)
            self._ids_before_logits = tokens[-1:]
            return
        unfinished = f"{path}.part"
        shape = len(tokens), self.net.config.n_vocab
        try:
            out = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            with token_bar("prompt") as progress:
                begun = time.perf_counter()
                self.net.prefill(tokens, all_logits=True, out=out, progress=progress)
                self._prompt_seconds = time.perf_counter() - begun
            out.flush()
            del out
            os.replace(unfinished, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)
        # The last token passes again where something is to follow: `generate` begins with it.
        self._ids_before_logits = tokens[-1:]

    def generate(self, n: int, sampling: Any) -> None:
        """The prompt, and up to `n` tokens behind it, each told as soon as it is there."""
        if not n:
            if self.args.logits is None:
                self._pass_prompt()
            return
        if self.args.logits is not None:
            self.net.truncate(len(self.prompt.tokens) - 1)
        room = self.net.choices.n_ctx - len(self.prompt.tokens) + 1
        if n > room > 0:
            loading.complain(
                f"note: the context of {self.net.choices.n_ctx} ends after {room} tokens"
            )
        tokens = self._ids_before_logits
        with token_bar("prompt") as progress:
            begun = time.perf_counter()
            following = self.net.generate(
                tokens,
                min(n, max(room, 1)),
                sample=sampling,
                stop=self.prompt.stop,
                progress=progress,
            )
            first = next(following, None)
        self._prompt_seconds = self._prompt_seconds or time.perf_counter() - begun
        begun = time.perf_counter()
        try:
            while first is not None:
                self._tell(first)
                first = next(following, None)
        finally:
            self._made_seconds = time.perf_counter() - begun

    def _pass_prompt(self):
        with token_bar("prompt") as progress:
            begun = time.perf_counter()
            self.net.prefill(self.prompt.tokens, progress=progress)
            self._prompt_seconds = time.perf_counter() - begun

    def _tell(self, token):
        self.made.append(token)
        if self._decoder is None:
            piece = f" {token}" if len(self.made) > 1 else f"{token}"
        else:
            piece = self._decoder.push(token)
        self._show(piece)

    def _show(self, piece):
        self.text += piece
        if not self.args.json:
            print(piece, end="", flush=True)

    def finish(self) -> int:
        """The rest of the text, the speed line or the JSON; the exit code."""
        if self._decoder is not None:
            self._show(self._decoder.finish())
        broken = loading.broken_limits(self.net)
        if self.args.json:
            from .tables import print_json

            print_json(self._document(broken))
        else:
            if self.made:
                print(flush=True)
            loading.complain(self._speed_line())
            for text in broken:
                loading.complain(f"BROKEN: {text}")
        if self.interrupted:
            loading.complain("kqcap run: interrupted")
            return INTERRUPTED
        return int(bool(broken))

    @property
    def _speeds(self):
        """t/s of the prompt and of what follows its first token, None where there is nothing to tell."""
        n_prompt, n_made = len(self.prompt.tokens), len(self.made) - 1
        pp = n_prompt / self._prompt_seconds if self._prompt_seconds else None
        tg = n_made / self._made_seconds if n_made > 0 and self._made_seconds else None
        return pp, tg

    def _speed_line(self):
        from lowlevel.cpu import compile_notice
        from lowlevel.sizes import format_size

        memory = self.net.memory
        pp, tg = ("-" if speed is None else f"{speed:.2f} t/s" for speed in self._speeds)
        return (
            f"speed: pp {len(self.prompt.tokens)} tokens {pp}, tg {len(self.made)} tokens {tg}; "
            f"compute {format_size(self.net.compute_peak)} used of {format_size(memory.compute)} planned"
            + "; kernels were compiled meanwhile, once for this CPU"
            * bool(compile_notice.n_compiled())
        )

    def _document(self, broken):
        net, c = self.net, self.net.choices
        pp, tg = self._speeds
        return {
            "model": self.args.model,
            "architecture": net.config.architecture,
            "n_layer": len(net.config.layers),
            "n_ctx": c.n_ctx,
            "n_ubatch": c.n_ubatch,
            "amb": c.amb,
            "kv_type": self.args.kv_type,
            "mla": c.mla,
            "n_threads": net.n_threads,
            "parts": [part.to_dict() for part in net.parts],
            "memory_of": {name: memory.to_dict() for name, memory in net.memory_of.items()},
            "n_ranks": c.ranks.size,
            "split": c.split or None,
            "memory": net.memory.to_dict(),
            "compute_peak": net.compute_peak,
            "pool_peak": sum(pool.peak for pool in net.pools.values()),
            "prompt_tokens": self.prompt.tokens,
            "tokens": self.made,
            "text": self.text if self._decoder is not None else None,
            "logits": self.args.logits,
            "pp_tokens_per_second": pp,
            "tg_tokens_per_second": tg,
            "interrupted": self.interrupted,
            "broken": broken,
        }
