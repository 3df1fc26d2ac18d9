"""Compiling helpers that are only ever inlined: to LLVM IR, no further.

Numba optimises every function and makes machine code of it, then does both again in each caller it
is inlined into. A kernel here is built of some thirty helpers nested a few levels deep, and that took
most of its compile time. What is compiled by `InlineCompiler` stays plain LLVM IR until the kernel
it ends up in is optimised as a whole.
"""

from __future__ import annotations

from typing import Any

from numba.core import codegen, compiler, typed_passes
from numba.core.compiler_machinery import register_pass


class _PlainLibrary(codegen.JITCodeLibrary):
    """Code to link into other libraries: neither optimised nor made executable."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


def _no_executable(library, fndesc, env):
    # The dispatcher insists on a builtin as entry point; this one refuses any argument.
    return [].__reversed__


@register_pass(mutates_CFG=True, analysis_only=False)
class _PlainLowering(typed_passes.NativeLowering):
    """Lowering into a `_PlainLibrary`."""

    _name = "plain_lowering"

    def run_pass(self, state):
        context = state.targetctx
        state.library = _PlainLibrary(context.codegen(), state.func_id.func_qualname)
        # Callees were compiled during type inference, before this; the compiler lock is held.
        context.get_executable = _no_executable
        try:
            return super().run_pass(state)
        finally:
            del context.get_executable


class InlineCompiler(compiler.CompilerBase):
    """The usual nopython pipeline with `_PlainLowering` at its end."""

    def define_pipelines(self) -> list[Any]:
        pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_PlainLowering, typed_passes.NativeLowering)
        pipeline.passes = [p for p in pipeline.passes if p[0] is not typed_passes.NativeLowering]
        pipeline.finalize()
        return [pipeline]
