"""What a model takes with some choices, before it takes anything: all passes, and the most of each part."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lowlevel import devices
from lowlevel.pool.arena import align_up
from lowlevel.pool.budget_error import BudgetError
from lowlevel.sizes import format_size

from .kv_cache import cache_bytes
from .layers import record_pass
from .step import DECOMPRESSED, form_changes_at, latent_form

if TYPE_CHECKING:
    from .config import ModelConfig, Rope
    from .step import Choices, Pass
    from .tensors import Weight

# Feed-forward parts work on so many rows at a time where a budget asks for it, and no fewer.
GROUP_ROWS = (None, 1024, 512, 256, 128, 64, 32)
SMALLEST_AMB = 2**16


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a model, by what they are for: what is planned is what is taken.

    Attributes
    ----------
    weights : int
        Of the file.
    weights_copied : int
        Of weights in the pool: 0 on the CPU, where the file is mapped.
    weights_made : int
        Of weights that the file has in another form.
    kv_cache : int
    activations : int
        All buffers of a pass, over each other where they never live at once.
    scratch : int
        Of attention (within amb), and of products.
    inputs : int
        Positions of a u-batch, and what is the same in every pass.
    host : int
        Beside the pool, on the host: embeddings on their way to a device, and what ranks hand one another by way of the
        host. 0 on the CPU.
    """

    weights: int
    weights_copied: int
    weights_made: int
    kv_cache: int
    activations: int
    scratch: int
    inputs: int
    host: int

    @property
    def compute(self) -> int:
        """What passes work in: activations, scratch, inputs."""
        return self.activations + self.scratch + self.inputs

    @property
    def pool(self) -> int:
        """What is taken from the pool in all."""
        return self.weights_copied + self.weights_made + self.kv_cache + self.compute

    def to_dict(self) -> dict[str, int]:
        """The same as plain values."""
        return {**dataclasses.asdict(self), "compute": self.compute, "pool": self.pool}


def plan_pass(
    config: ModelConfig, choices: Choices, n_tokens: int, n_kv: int, n_outputs: int = 1
) -> Pass:
    """The plan of one pass: every buffer with its lifetime, and its bytes.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    n_tokens : int
        1 is a decode step.
    n_kv : int
        Tokens in the cache after it.
    n_outputs : int
        The last tokens whose logits are asked for.
    """
    return record_pass(config, choices, n_tokens, n_outputs, n_kv)


class Planned:
    """What a model takes with some choices: passes of all sizes, and the most of each part.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    passes : dict, optional
        Where passes are kept; those of one config and one `pass_key` serve all contexts and budgets.
    """

    def __init__(
        self, config: ModelConfig, choices: Choices, passes: dict[tuple, Pass] | None = None
    ) -> None:
        self.config, self.choices = config, choices
        self._passes = {} if passes is None else passes
        self._passes_at: dict[tuple, tuple[int, int, int]] = {}
        self._fitting: dict[tuple, bool] = {}
        self.activation_bytes = self.attention_bytes = self.staging_bytes = fixed = 0
        brief, refused = config.of_each_kind(), []
        for n_tokens in _some_sizes(choices.n_ubatch):
            for n_kv in self._contexts(n_tokens):
                for n_outputs in {0, 1, n_tokens}:
                    made = self._of(brief, n_tokens, n_outputs, n_kv)
                    self.activation_bytes = max(self.activation_bytes, made.activation_bytes)
                    fixed = max(fixed, made.fixed_scratch_bytes)
                    self.staging_bytes = max(self.staging_bytes, made.staging_bytes)
                    try:
                        attention = made.attention_bytes(n_kv, choices.amb)
                    except BudgetError as error:
                        refused.append(error)
                        continue
                    self.attention_bytes = max(self.attention_bytes, attention)
        if refused:  # what holds the most demanding pass holds all
            raise max(refused, key=lambda error: error.requested)
        self.scratch_bytes = max(fixed, self.attention_bytes)

    def _contexts(self, n_tokens):
        """Tokens in the cache after a pass: powers of two, and where the form of latent attention changes."""
        n_ctx, layer = self.choices.n_ctx, self.config.layers[0]
        contexts = set(_some_sizes(n_ctx))
        if layer.is_latent:
            at = form_changes_at(layer, n_tokens)
            contexts |= {min(max(1, n_kv), n_ctx) for n_kv in (at, at + 1)}
        return sorted(n_kv for n_kv in contexts if n_kv >= n_tokens)

    def _forms(self, n_tokens, n_outputs, n_kv):
        """Of latent attention, in the layers before the last one and in that."""
        layer = self.config.layers[0]
        if not layer.is_latent:
            return ()
        sizes = n_tokens, max(n_outputs, 1)
        return tuple(latent_form(layer, n, n_kv, self.choices.mla) for n in sizes)

    def of(self, n_tokens: int, n_outputs: int, n_kv: int) -> Pass:
        """The pass of a size; those that are alike are one."""
        return self._of(self.config, n_tokens, n_outputs, n_kv)

    def _of(self, config, n_tokens, n_outputs, n_kv):
        forms = self._forms(n_tokens, n_outputs, n_kv)
        key = config is self.config, n_tokens, n_outputs, *forms
        if key not in self._passes:
            counted = n_tokens == 1 and DECOMPRESSED not in forms and self.counts_tokens
            self._passes[key] = record_pass(
                config, self.choices, n_tokens, n_outputs, n_kv, counted
            )
        if n_outputs:
            self._passes_at[forms] = n_tokens, n_outputs, n_kv
        return self._passes[key]

    def forget(self, made: Pass) -> None:
        """Let go of a pass; it is made anew when it is asked for."""
        for key in [key for key, each in self._passes.items() if each is made]:
            del self._passes[key]

    @functools.cached_property
    def counts_tokens(self) -> bool:
        """Whether kernels can read how many keys there are: a decode step is the same launches every time then."""
        choices, planner = self.choices, devices.get(self.choices.device).planner
        if not choices.gathers or any(layer.window for layer in self.config.layers):
            return False
        if (
            choices.split == "context"
        ):  # where a token's row goes, and how many keys a rank has, the host says
            return False
        made = record_pass(self.config.of_each_kind(), choices, 1, 1, choices.n_ctx, True)
        try:
            plans = [
                each.plan(choices.n_ctx, choices, choices.amb) for each in made.attention_sizes
            ]
        except BudgetError:
            return False
        return all(planner.counts_keys(plan.sizes) for plan in plans)

    def fits(self, n_tokens: int, n_kv: int) -> bool:
        """Whether a pass of a size takes no more than was planned, with logits of all its tokens too."""
        key = n_tokens, *self._forms(n_tokens, n_tokens, n_kv)
        if key not in self._fitting:
            brief = self.config.of_each_kind()
            made = record_pass(brief, self.choices, n_tokens, n_tokens, n_kv)
            self._fitting[key] = (
                made.activation_bytes <= self.activation_bytes
                and made.fixed_scratch_bytes <= self.scratch_bytes
            )
        return self._fitting[key]

    @functools.cached_property
    def whole_passes(self) -> tuple[Pass, ...]:
        """Passes of all layers that between them need every weight and constant."""
        return tuple(self._of(self.config, *sizes) for sizes in list(self._passes_at.values()))

    def weights(self) -> tuple[dict[Weight, None], dict[Weight, None]]:
        """(those that are needed in their blocks, those that are needed as float32), each once."""
        operations = [op for each in self.whole_passes for op in each.operations]
        matrices = dict.fromkeys(weight for op in operations for weight in op.matrices)
        return matrices, dict.fromkeys(weight for op in operations for weight in op.vectors)

    def constants(self) -> dict[tuple[str, int], Any]:
        """What is the same in every pass; see `Pass.constants`."""
        return {key: made for each in self.whole_passes for key, made in each.constants.items()}

    def ropes(self) -> tuple[Rope, ...]:
        """The kinds of RoPE that layers have."""
        return tuple(dict.fromkeys(layer.rope for layer in self.config.layers))

    def memory(self, weight_bytes: int) -> Memory:
        """All bytes, `weight_bytes` being the file's."""
        config, choices = self.config, self.choices
        is_mapped = devices.get(choices.device).room == "cpu"
        matrices, vectors = self.weights()
        made = sum(align_up(weight.n_bytes) for weight in matrices if weight.is_turned)
        whole = {(w.name, w.share): w.whole_bytes for w in matrices if not w.is_turned}
        copied = sum(map(align_up, whole.values())) + sum(
            align_up(4 * math.prod(weight.shape)) for weight in vectors
        )
        inputs = align_up(4 * choices.n_ubatch) + align_up(4)
        inputs += sum(buffer.n_bytes for buffer, _ in self.constants().values())
        if not is_mapped:
            inputs += sum(align_up(4 * rope.n_rot) for rope in self.ropes())
        return Memory(
            weights=weight_bytes,
            weights_copied=0 if is_mapped else copied,
            weights_made=made,
            kv_cache=cache_bytes(config, choices.n_cached, choices.n_ubatch, choices.kv_type),
            activations=self.activation_bytes,
            scratch=self.scratch_bytes,
            inputs=inputs,
            host=self.staging_bytes + (0 if is_mapped else 4 * choices.n_ubatch * config.n_embd),
        )


def _some_sizes(most):
    """1, the powers of two, and `most`."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})


def pass_key(choices: Choices) -> Choices:
    """What passes depend on: choices that differ elsewhere have the same ones.

    Constants are of whole u-batches, and on devices kernels that count keys are planned for the whole context.
    """
    n_ctx = choices.n_ctx if choices.gathers else 0
    return dataclasses.replace(choices, n_ctx=n_ctx, amb=None)


def choose(
    config: ModelConfig,
    choices: Choices,
    weight_bytes: int,
    room: int | None,
    passes: dict[Choices, dict] | None = None,
) -> tuple[Planned, Memory]:
    """The best plan that fits.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    weight_bytes : int
        Of the file.
    room : int or None
        Bytes that there are; None: as many as it takes.
    passes : dict, optional
        Where passes of this config are kept, by `pass_key`.

    Raises
    ------
    BudgetError
        Nothing fits, or amb is below the smallest tile; says what would do.
    """
    passes = {} if passes is None else passes
    refused: Memory | None = None
    below: dict[int | str, BudgetError] = {}  # by the form of latent attention
    for candidate in candidates(choices):
        if candidate.mla in below:
            continue
        try:
            planned = Planned(config, candidate, passes.setdefault(pass_key(candidate), {}))
        except BudgetError as error:  # amb is below the smallest tile, and will be
            below[candidate.mla] = error
            continue
        memory = planned.memory(weight_bytes)
        if room is None or memory.pool <= room:
            return planned, memory
        refused = memory
    if refused is None:
        raise _below_amb(min(below.values(), key=lambda error: error.requested), choices)
    raise _too_small(refused, room)


def candidates(choices: Choices) -> Iterator[Choices]:
    """The best choices, then those that take less: smaller groups, then smaller tiles of attention.

    To decompress latents takes more than the smallest tile: where amb is below that, "auto" is absorbed.
    """
    forms = (choices.mla, 1) if choices.mla in (3, "auto") else (choices.mla,)
    for mla in forms:
        for group_rows in GROUP_ROWS:
            yield dataclasses.replace(choices, group_rows=group_rows, mla=mla)
        amb = choices.amb or 2**30
        while amb > SMALLEST_AMB:
            amb //= 2
            yield dataclasses.replace(choices, group_rows=GROUP_ROWS[-1], amb=amb, mla=mla)


def _below_amb(error, choices):
    """What to raise where amb holds no tile of attention."""
    return BudgetError(
        f"amb: {format_size(choices.amb)} are too few for the smallest tile of attention; {error.remedy}",
        requested=error.requested,
        budget=choices.amb,
        smallest_budget=error.smallest_budget,
        remedy=error.remedy,
    )


def _too_small(memory, room):
    """What to raise where a model does not fit its pool."""
    needed = memory.pool
    remedy = (
        f"a pool of {needed} bytes ({format_size(needed)}), or a smaller n_ubatch, n_ctx or kv_type"
    )
    return BudgetError(
        f"pool: {room} bytes ({format_size(room)}) in one piece are too few for this model's passes, which take "
        f"{format_size(memory.kv_cache)} of K/V cache and {format_size(memory.compute)} of compute memory: "
        f"give {remedy}",
        requested=needed,
        budget=room,
        smallest_budget=needed,
        remedy=remedy,
    )


def check_machine(memory: Memory) -> None:
    """Raise MemoryError where a private pool would be more than the machine has: it would fail at token 20000."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory.pool > most:
        raise MemoryError(
            f"n_ctx: K/V cache and compute memory would take {format_size(memory.pool)}, this machine has "
            f"{format_size(most)}; give a smaller n_ctx, n_ubatch or kv_type"
        )
