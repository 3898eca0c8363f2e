// Switching between stacks, for x86-64 and aarch64: saves what the ABI lets a callee keep.
#pragma once

#include <cstdint>
#include <cstring>

extern "C" void svdq_switch_stack(void** save, void* load);

#if defined(__x86_64__)
__asm__(
    ".text\n.weak svdq_switch_stack\n.type svdq_switch_stack,@function\nsvdq_switch_stack:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n"
    ".size svdq_switch_stack, .-svdq_switch_stack\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n.weak svdq_switch_stack\n.type svdq_switch_stack,%function\nsvdq_switch_stack:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n"
    ".size svdq_switch_stack, .-svdq_switch_stack\n");
#else
#error "fibers are written for x86-64 and aarch64"
#endif

namespace on_cpu {

// A stack pointer that, switched to, calls `entry` on an empty stack ending at `top`. `entry` must not return.
inline void* fresh_stack(void* top, void (*entry)()) {
    auto const end = reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63);
#if defined(__x86_64__)
    auto* sp = reinterpret_cast<void**>(end);
    *--sp = nullptr;                          // where a caller's return address would be: keeps the alignment of a call
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    return sp;
#else
    char* const sp = reinterpret_cast<char*>(end) - 160;
    std::memset(sp, 0, 160);
    void* address = reinterpret_cast<void*>(entry);
    std::memcpy(sp + 88, &address, sizeof address);  // x30
    return sp;
#endif
}

}  // namespace on_cpu
