"""What a model takes with some choices, before it takes anything: all passes, and the most of each part."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel import devices
from lowlevel.pool.arena import align_up
from lowlevel.pool.budget_error import BudgetError
from lowlevel.sizes import format_size

from .crossing import staging
from .host_experts import exchange_bytes
from .kv_cache import cache_bytes
from .layers import record_pass
from .memory import Memory, some_sizes
from .step import DECOMPRESSED, form_changes_at, latent_form
from .weights_used import WeightsUsed

if TYPE_CHECKING:
    from .config import ModelConfig, Rope
    from .step import AttentionSizes, Choices, Pass
    from .tensors import Weight

# Feed-forward parts work on so many rows at a time where a budget asks for it, and no fewer.
GROUP_ROWS = (None, 1024, 512, 256, 128, 64, 32)
SMALLEST_AMB = 2**16
# Positions begin here in a pass's inputs: what stands before is how many tokens there are.
POSITIONS = 64


def input_layout(choices: Choices) -> tuple[tuple[int, ...], str, int]:
    """Shape, dtype and bytes of what a pass is told: how many tokens there are with its own, and their positions."""
    n = POSITIONS + choices.n_ubatch
    return (n,), "int32", 4 * n


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
        self.activation_bytes = self.attention_bytes = self.staging_bytes = scratch = 0
        self._brief, refused = config.of_each_kind(), []
        workspace = attention_offset = 0
        attention: dict[
            tuple[AttentionSizes, int], None
        ] = {}  # what is planned once, of many passes
        for n_tokens in some_sizes(choices.n_ubatch):
            for n_kv in self._contexts(n_tokens):
                for n_outputs in self._outputs(n_tokens):
                    made = self._of(self._brief, n_tokens, n_outputs, n_kv)
                    self.activation_bytes = max(self.activation_bytes, made.activation_bytes)
                    scratch = max(scratch, made.fixed_scratch_bytes)
                    workspace = max(workspace, made.fixed_workspace_bytes)
                    attention_offset = max(attention_offset, made.attention_offset)
                    self.staging_bytes = max(self.staging_bytes, made.staging_bytes)
                    attention |= dict.fromkeys(made.attention_at(n_kv))
        for sizes, n_keys in attention:
            try:
                plan = sizes.plan(n_keys, choices, choices.amb)
                self.attention_bytes = max(self.attention_bytes, plan.scratch_bytes)
            except BudgetError as error:
                refused.append(error)
        if refused:  # what holds the most demanding pass holds all
            raise max(refused, key=lambda error: error.requested)
        self.scratch_bytes = max(scratch, self.attention_bytes)
        # A context in between may take all that another one takes.
        self.workspace_bytes = max(workspace, attention_offset + self.attention_bytes)

    def _outputs(self, n_tokens):
        """Of how many tokens logits may be asked for, as far as this part's passes differ by it."""
        config = self.config
        if config.has_last:
            return {0, 1, n_tokens}
        return {n_tokens} if config.has_output else {0}

    def _contexts(self, n_tokens):
        """Tokens in the cache after a pass: powers of two, and where the form of latent attention changes."""
        n_ctx, layer = self.choices.n_ctx, self._first_layer
        if layer is None:
            return [n_ctx]
        contexts = set(some_sizes(n_ctx))
        if layer.is_latent:
            at = form_changes_at(layer, n_tokens)
            contexts |= {min(max(1, n_kv), n_ctx) for n_kv in (at, at + 1)}
        return sorted(n_kv for n_kv in contexts if n_kv >= n_tokens)

    @property
    def _first_layer(self):
        return self.config.layers[0] if self.config.layers else None

    def _forms(self, n_tokens, n_outputs, n_kv):
        """Of latent attention, in the layers before the last one and in that."""
        layer = self._first_layer
        if layer is None or not layer.is_latent:
            return ()
        sizes = n_tokens, max(n_outputs, 1)
        return tuple(latent_form(layer, n, n_kv, self.choices.mla) for n in sizes)

    def of(self, n_tokens: int, n_outputs: int, n_kv: int) -> Pass:
        """The pass of a size; those that are alike are one.

        `n_tokens` are those that reach this part: behind the last layer those with logits alone.
        """
        if not self.config.has_last:
            n_outputs = n_tokens if self.config.has_output else 0
        return self._of(self.config, n_tokens, n_outputs, n_kv)

    def _of(self, config, n_tokens, n_outputs, n_kv):
        forms = self._forms(n_tokens, n_outputs, n_kv)
        key = config is self.config, n_tokens, n_outputs, *forms
        if key not in self._passes:
            counted = n_tokens == 1 and DECOMPRESSED not in forms and self.counts_tokens
            self._passes[key] = record_pass(
                config, self.choices, n_tokens, n_outputs, n_kv, counted
            )
        if n_outputs or not self.config.has_last:
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
        if (
            not choices.in_token_order
            or not self.config.layers
            or any(layer.window for layer in self.config.layers)
        ):
            return False
        if choices.split == "context":
            # Where a token's row goes, and how many keys a rank has, the host says.
            return False
        made = record_pass(self._brief, choices, 1, 1, choices.n_ctx, True)
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
            n_outputs = max(self._outputs(n_tokens))
            made = record_pass(self._brief, self.choices, n_tokens, n_outputs, n_kv)
            needed = made.workspace_bytes(self.attention_bytes)
            self._fitting[key] = needed <= self.workspace_bytes
        return self._fitting[key]

    @functools.cached_property
    def _whole_passes(self):
        """Passes that between them need every kind of weight and constant; with one layer of each kind."""
        return [self._of(self._brief, *sizes) for sizes in list(self._passes_at.values())]

    def weights(self) -> tuple[dict[Weight, None], dict[Weight, None]]:
        """(those that are needed in their blocks, those that are needed as float32), each once."""
        used = WeightsUsed(self.config, self._brief, self.choices.exact)
        operations = [op for each in self._whole_passes for op in each.operations]
        matrices = used.of_all(weight for op in operations for weight in op.matrices)
        return matrices, used.of_all(weight for op in operations for weight in op.vectors)

    def constants(self) -> dict[tuple[str, int], Any]:
        """What is the same in every pass; see `Pass.constants`."""
        return {key: made for each in self._whole_passes for key, made in each.constants.items()}

    def ropes(self) -> tuple[Rope, ...]:
        """The kinds of RoPE that layers have."""
        return tuple(dict.fromkeys(layer.rope for layer in self.config.layers))

    def memory(self, weight_bytes: int) -> Memory:
        """All bytes, `weight_bytes` being the file's."""
        config, choices = self.config, self.choices
        is_mapped = devices.get(choices.device).in_host_memory
        matrices, vectors = self.weights()
        made = sum(align_up(weight.n_bytes) for weight in matrices if weight.is_turned)
        whole = {(w.name, w.share): w.whole_bytes for w in matrices if not w.is_turned}
        copied = sum(map(align_up, whole.values())) + sum(
            align_up(4 * math.prod(weight.shape)) for weight in vectors
        )
        inputs = align_up(input_layout(choices)[2])
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
            workspace=self.workspace_bytes,
            inputs=inputs,
            host=self.staging_bytes + sum(self.pinned_bytes().values()),
        )

    def pinned_bytes(self) -> dict[str, int]:
        """Pinned memory by what is on its way: "inputs", "embeddings", "experts"."""
        config, choices = self.config, self.choices
        device = devices.get(choices.device)
        rows = choices.n_ubatch, config.n_embd
        return {
            "inputs": staging(device, *input_layout(choices)[:2]).pinned_bytes,
            "embeddings": staging(device, rows).pinned_bytes if config.has_input else 0,
            "experts": exchange_bytes(config, choices.n_ubatch),
        }


def pass_key(choices: Choices) -> Choices:
    """What passes depend on: choices that differ elsewhere have the same ones.

    Constants are of whole u-batches, and on devices kernels that count keys are planned for the whole context.
    """
    n_ctx = choices.n_ctx if choices.in_token_order else 0
    return dataclasses.replace(choices, n_ctx=n_ctx, amb=None)


class Room(NamedTuple):
    """What a plan must fit.

    Attributes
    ----------
    n_bytes : int or None
        None: as many as it takes.
    what : str
        Whose they are, for errors: "pool", "cuda:1".
    """

    n_bytes: int | None = None
    what: str = "pool"


def choose(
    makers: Sequence[Callable[[Choices], tuple[Any, Memory]]], choices: Choices, room: Room
) -> tuple[list[Any], Memory]:
    """The best plan of one device that fits.

    Parameters
    ----------
    makers : sequence of callable
        (choices) -> (a plan, its bytes): of each part of the model that lies there.
    choices : Choices
    room : Room

    Returns
    -------
    (list, Memory)
        The plans, and their bytes together.

    Raises
    ------
    BudgetError
        Nothing fits, or amb is below the smallest tile; says what would do.
    """
    refused: Memory | None = None
    below: dict[int | str, BudgetError] = {}  # by the form of latent attention
    for candidate in candidates(choices):
        if candidate.mla in below:
            continue
        try:
            made = [make(candidate) for make in makers]
        except BudgetError as error:  # amb is below the smallest tile, and will be
            below[candidate.mla] = error
            continue
        memory = sum((each for _, each in made), Memory())
        if room.n_bytes is None or memory.pool <= room.n_bytes:
            return [planned for planned, _ in made], memory
        refused = memory
        if memory.pool - memory.compute > room.n_bytes:  # weights and cache are what they are
            break
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
    """What to raise where a model, or a part of it, does not fit its device."""
    needed = memory.pool
    what = "a pool of " if room.what == "pool" else ""
    remedy = (
        f"{what}{needed} bytes ({format_size(needed)}), or a smaller n_ubatch, n_ctx or kv_type"
    )
    if memory.weights_copied:
        remedy += (
            ", or fewer layers there (n_gpu_layers, tensor_split), or experts on the CPU (cpu_moe)"
        )
    weights = memory.weights_copied + memory.weights_made
    parts = f"{format_size(weights)} of weights, " * bool(weights)
    return BudgetError(
        f"{room.what}: {room.n_bytes} bytes ({format_size(room.n_bytes)}) in one piece are too few for this model's "
        f"passes, which take {parts}{format_size(memory.kv_cache)} of K/V cache and {format_size(memory.compute)} of "
        f"compute memory: give {remedy}",
        requested=needed,
        budget=room.n_bytes,
        smallest_budget=needed,
        remedy=remedy,
    )
