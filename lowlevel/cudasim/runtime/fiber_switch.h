// Switching stacks: our own few instructions on x86-64, ucontext elsewhere (correct, but each
// switch is a system call).
#pragma once
#include <stdint.h>
#include <stddef.h>

#if defined(__x86_64__) && !defined(CUDASIM_UCONTEXT)

extern "C" void cudasim_switch_fiber(void** save_stack_pointer, void* next_stack_pointer);
// Saves what the System V ABI asks a called function to preserve; SSE state and flags are not.
asm(R"(
.text
.type cudasim_switch_fiber,@function
cudasim_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cudasim_switch_fiber, .-cudasim_switch_fiber
)");

namespace cudasim {
inline void switch_fiber(void** save, void* next) { cudasim_switch_fiber(save, next); }

inline void* prepare_stack(char* top, void (*entry)()) {
  void** slot = reinterpret_cast<void**>(top - 64);
  *--slot = nullptr;  // where a caller of `entry` would be: ends backtraces, aligns the stack
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;  // the six saved registers
  return slot;
}
}  // namespace cudasim

#else
#include <ucontext.h>

namespace cudasim {
// A ucontext lies at the top of each stack; the one of the scheduler itself in a static variable.
inline void switch_fiber(void** save, void* next) {
  ucontext_t own;
  *save = &own;
  swapcontext(&own, static_cast<ucontext_t*>(next));
}

inline void* prepare_stack(char* top, void (*entry)()) {
  constexpr size_t kRoom = 4096, kUsable = 192 << 10;
  auto* context = reinterpret_cast<ucontext_t*>(top - kRoom);
  getcontext(context);
  context->uc_stack.ss_sp = top - kRoom - kUsable;
  context->uc_stack.ss_size = kUsable;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
}  // namespace cudasim
#endif
