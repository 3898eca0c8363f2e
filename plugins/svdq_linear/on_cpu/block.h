// A CUDA block on one CPU thread: a fiber per CUDA thread, run until it waits for others. A waiting thread is woken by
// the event that it waits for; who runs next is first come, first served, or drawn by SVDQ_CPU_SEED.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace on_cpu {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWords = 12;  // that a lane brings to, or takes from, a warp's collective operation

[[noreturn]] inline void fail(char const* what, char const* detail = "") {
    std::fprintf(stderr, "on_cpu: %s%s\n", what, detail);
    std::abort();
}

struct Warp {
    uint32_t in[32][kWords], out[32][kWords];
    char const* operation = nullptr;
    std::vector<int> waiting;
};

struct Copy {
    void* to;
    unsigned char bytes[16];
};

// A thread's asynchronous copies: the group being collected and those committed.
struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

class Block {
public:
    dim3 grid, index, threads;
    int current = 0;

    void run(dim3 grid_, dim3 index_, dim3 threads_, std::function<void()> body) {
        grid = grid_, index = index_, threads = threads_, body_ = std::move(body);
        count_ = static_cast<int>(threads.x * threads.y * threads.z);
        live_ = count_;
        at_barrier_.clear();
        warps_.assign((count_ + 31) / 32, Warp{});
        copies_.assign(count_, Copies{});
        stack_pointers_.assign(count_, nullptr);
        ready_.clear();
        for (int t = 0; t < count_; ++t) {
            if (static_cast<int>(stacks_.size()) <= t) stacks_.emplace_back(new char[kStackBytes]);
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region(stacks_[t].get(), kStackBytes);  // frames that a finished thread left
#endif
            stack_pointers_[t] = fresh_stack(stacks_[t].get() + kStackBytes, &Block::entry);
            ready_.push_back(t);
        }
        active() = this;
        resume_next(&outside_);
    }

    // __syncthreads. Threads that have returned do not count.
    void barrier() {
        at_barrier_.push_back(current);
        if (static_cast<int>(at_barrier_.size()) == live_) {
            release(at_barrier_);
        }
        wait();
    }

    // The lanes of a warp bring `in` and, once all are there, each takes its row of what `operation` makes of them.
    template <class Operation>
    void collective(char const* name, uint32_t const* in, int words_in, uint32_t* out, int words_out, Operation&& operation) {
        Warp& warp = warps_[current / 32];
        if (!warp.waiting.empty() && warp.operation != name && std::strcmp(warp.operation, name) != 0)
            fail("lanes of a warp diverge at ", name);
        warp.operation = name;
        int const lane = current % 32;
        std::memcpy(warp.in[lane], in, 4 * words_in);
        warp.waiting.push_back(current);
        if (warp.waiting.size() == 32) {
            operation(warp.in, warp.out);
            release(warp.waiting);
        }
        wait();
        std::memcpy(out, warp.out[lane], 4 * words_out);
    }

    Copies& copies() { return copies_[current]; }

    static Block*& active() {
        static thread_local Block* block = nullptr;
        return block;
    }

private:
    std::function<void()> body_;
    int count_ = 0, live_ = 0;
    std::vector<std::unique_ptr<char[]>> stacks_;
    std::vector<void*> stack_pointers_;
    std::vector<int> ready_, at_barrier_;
    std::vector<Warp> warps_;
    std::vector<Copies> copies_;
    void* outside_ = nullptr;
    uint64_t random_ = seed();

    static uint64_t seed() {
        char const* text = std::getenv("SVDQ_CPU_SEED");
        return text ? std::strtoull(text, nullptr, 10) * 2654435761u + 88172645463325252ull : 0;
    }

    void release(std::vector<int>& waiting) {
        ready_.insert(ready_.end(), waiting.begin(), waiting.end());
        waiting.clear();
    }

    void wait() { resume_next(&stack_pointers_[current]); }

    void resume_next(void** save) {
        if (ready_.empty()) fail("deadlock: every thread waits for another");
        size_t pick = 0;
        if (random_ != 0) {
            random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;  // xorshift
            pick = (random_ >> 16) % ready_.size();
        }
        current = ready_[pick];
        ready_.erase(ready_.begin() + static_cast<long>(pick));
        if (save != &stack_pointers_[current]) svdq_switch_stack(save, stack_pointers_[current]);
    }

    static void entry() {
        Block* const block = active();
        block->body_();
        if (--block->live_ == 0) {
            void* nowhere;
            svdq_switch_stack(&nowhere, block->outside_);
        }
        if (!block->at_barrier_.empty() && static_cast<int>(block->at_barrier_.size()) == block->live_)
            block->release(block->at_barrier_);
        void* nowhere;
        block->resume_next(&nowhere);
    }
};

// Every block of a grid, one after the other.
inline void launch(dim3 grid, dim3 threads, std::function<void()> const& body) {
    static thread_local Block block;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) block.run(grid, dim3{x, y, z}, threads, body);
}

}  // namespace on_cpu
