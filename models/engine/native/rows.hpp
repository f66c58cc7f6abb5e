// Tensors from Python, by address and strides, and the access to their rows that all kernels share.
#pragma once
#include <algorithm>

#include "vector.hpp"

namespace tacomamba {

constexpr int64_t STRIPS = 8;  // vectors of channels in one unit of work

// A (batch, length, width) tensor whose last stride is 1, of float32 or bfloat16; strides count elements.
struct Rows {
    void *data;
    int64_t batch_stride, row_stride, is_bfloat16;

    bool exists() const { return data != nullptr; }

    int64_t offset(int64_t batch, int64_t row, int64_t column) const {
        return batch * batch_stride + row * row_stride + column;
    }
};

// Memory that will be needed soon: a vector a frame, each `stride` bytes after the last. It is fetched into the cache
// frame by frame, while something else is computed.
struct Ahead {
    const char *first;
    int64_t stride;

    static Ahead of(const Rows &rows, int64_t row, int64_t frame, int64_t channel) {
        const int64_t bytes = rows.is_bfloat16 ? 2 : 4;
        return {static_cast<const char *>(rows.data) + rows.offset(row, frame, channel) * bytes,
                rows.row_stride * bytes};
    }
    void fetch(int64_t frame) const { __builtin_prefetch(first + frame * stride); }
};

struct Fetch {
    Ahead list[8];
    int64_t size = 0;

    void add(const Ahead &ahead) { list[size++] = ahead; }
    void add(const Rows &rows, int64_t row, int64_t frame, int64_t channel) {
        if (rows.exists()) add(Ahead::of(rows, row, frame, channel));
    }
};

// The part of a list that one of several passes over the frames fetches.
struct Share {
    const Ahead *first, *last;

    Share(const Fetch &fetch, int64_t pass, int64_t passes)
        : first(fetch.list + pass * fetch.size / passes), last(fetch.list + (pass + 1) * fetch.size / passes) {}
    void fetch(int64_t frame) const {
        for (const Ahead *ahead = first; ahead < last; ahead++) ahead->fetch(frame);
    }
};

// The first `count` lanes, for the last channels of a row; the other lanes are 0.
__attribute__((noinline, cold)) static Float load_part(const Rows &rows, int64_t offset, int64_t count) {
    const uint16_t *halves = static_cast<const uint16_t *>(rows.data) + offset;
    const float *floats = static_cast<const float *>(rows.data) + offset;
    Float values{};
    if (rows.is_bfloat16) {
        Half bits{};
        for (int64_t lane = 0; lane < count; lane++) bits[lane] = halves[lane];
        return from_bfloat16(bits);
    }
    for (int64_t lane = 0; lane < count; lane++) values[lane] = floats[lane];
    return values;
}

__attribute__((noinline, cold)) static void store_part(const Rows &rows, int64_t offset, int64_t count, Float values) {
    uint16_t *halves = static_cast<uint16_t *>(rows.data) + offset;
    float *floats = static_cast<float *>(rows.data) + offset;
    const Half bits = to_bfloat16(values);
    for (int64_t lane = 0; lane < count; lane++)
        if (rows.is_bfloat16)
            halves[lane] = bits[lane];
        else
            floats[lane] = values[lane];
}

// One vector from `offset` on, of which the first `left` elements exist.
INLINE Float load_lanes(const Rows &rows, int64_t offset, int64_t left) {
    if (left < LANES) return load_part(rows, offset, left);
    if (rows.is_bfloat16) return from_bfloat16(load<Half>(static_cast<const uint16_t *>(rows.data) + offset));
    return load<Float>(static_cast<const float *>(rows.data) + offset);
}

INLINE void store_lanes(const Rows &rows, int64_t offset, int64_t left, Float values) {
    if (left < LANES) return store_part(rows, offset, left, values);
    if (rows.is_bfloat16) return store(static_cast<uint16_t *>(rows.data) + offset, to_bfloat16(values));
    store(static_cast<float *>(rows.data) + offset, values);
}

}  // namespace tacomamba
