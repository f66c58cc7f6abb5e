// A parallel loop on threads that exist only during the call.
//
// No OpenMP: libgomp hangs in a forked child whose parent has used it, and torch brings its own copy. A thread takes
// about 20 us to start, so the caller requests few when there is little to do.
#pragma once
#include <atomic>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "vector.hpp"

namespace tacomamba {

// Denormal numbers count as 0 while this exists: a decaying state would otherwise slow some CPUs a hundredfold.
class FlushDenormals {
#if defined(__SSE__)
    unsigned saved = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#else
  public:
    FlushDenormals() {}
#endif
};

// Aligned working memory of one thread, handed out piece by piece.
class Scratch {
    Float *next;
    Float *memory;

  public:
    explicit Scratch(int64_t vectors) {
        memory = next = static_cast<Float *>(std::aligned_alloc(64, (vectors * sizeof(Float) + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
    }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { std::free(memory); }

    Float *take(int64_t vectors) {
        Float *piece = next;
        next += vectors;
        return piece;
    }
};

// Calls work(next) on up to `threads` threads, the calling one among them; next() returns each of `units` once, and
// then -1. Which thread computes a unit depends on chance: units must not depend on each other.
template <class Work> void parallel(int64_t units, int64_t threads, const Work &work) {
    std::atomic<int64_t> counter{0};
    std::atomic<bool> failed{false};
    const auto next = [&] {
        const int64_t unit = counter.fetch_add(1, std::memory_order_relaxed);
        return unit < units ? unit : int64_t(-1);
    };
    const auto run = [&] {
        try {
            const FlushDenormals flush;
            work(next);
        } catch (const std::bad_alloc &) {
            failed = true;
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads);
    try {
        for (int64_t i = 1; i < threads && i < units; i++) helpers.emplace_back(run);
    } catch (const std::system_error &) {
        // The system provides no more threads: those that started do the work.
    }
    run();
    for (std::thread &helper : helpers) helper.join();
    if (failed) throw std::bad_alloc();
}

}  // namespace tacomamba
