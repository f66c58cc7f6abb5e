// The parts that both directions of the selective scan share: arguments, units of work, and the recurrence itself.
//
// A strip is one vector of channels; its states are processed in blocks that fit into registers. A unit of work is one
// batch row and up to STRIPS strips. It is processed in chunks of frames, whose inputs stay in the cache while every
// block of every strip passes over them. The units depend on shapes only, so results do not depend on the number of
// threads. Shape letters as in interface.py.
#pragma once
#include "parallel.hpp"
#include "rows.hpp"

namespace tacomamba {

constexpr int BLOCK = 4;  // the number of vectors that sum_quarters takes
constexpr int64_t WIDEST_STRIP = 16;
constexpr float LOG2_E = 1.44269504f;

// Inputs of both directions; see ops.py. Absent tensors are null. Everything but Rows is contiguous.
struct Scan {
    int64_t batch, length, channels, states, chunk, threads, softplus;
    Rows u, dt, z, B, C;
    const float *A, *D, *dt_bias, *initial_state;  // (d, n), (d), (d), (b, d, n)
    const int32_t *seq_idx;                        // (b, l)
    float *checkpoints;                            // (b, chunks, d padded, n padded): the state before each chunk

    int64_t padded_states() const { return (states + BLOCK - 1) / BLOCK * BLOCK; }
    int64_t strips() const { return (channels + LANES - 1) / LANES; }
    int64_t groups() const { return (strips() + STRIPS - 1) / STRIPS; }
    int64_t chunks() const { return (length + chunk - 1) / chunk; }

    // True where a packed sequence begins inside a batch row.
    bool starts(int64_t row, int64_t t) const {
        return seq_idx && t > 0 && seq_idx[row * length + t] != seq_idx[row * length + t - 1];
    }

    // Checkpoints are padded to the strips of the widest CPU, so that their shape is the same everywhere.
    Float *checkpoint(int64_t row, int64_t index, int64_t strip) const {
        const int64_t width = (channels + WIDEST_STRIP - 1) / WIDEST_STRIP * WIDEST_STRIP;
        return reinterpret_cast<Float *>(checkpoints + (row * chunks() + index) * width * padded_states()) +
               strip * padded_states();
    }

    // Keeps the state before a chunk; with the last strip also zeros, as the state of the padding.
    void keep(int64_t row, int64_t index, int64_t strip, const Float *state) const {
        Float *place = checkpoint(row, index, strip);
        std::memcpy(place, state, padded_states() * sizeof(Float));
        if (strip == strips() - 1) {
            Float *end = place + padded_states(), *next = checkpoint(row, index + 1, 0);
            std::memset(end, 0, (next - end) * sizeof(Float));
        }
    }
};

// One unit of work: strips [first_strip, first_strip + strips) of a batch row.
struct Unit {
    int64_t row, group, first_strip, strips;

    Unit(const Scan &scan, int64_t index)
        : row(index / scan.groups()),
          group(index % scan.groups()),
          first_strip(group * STRIPS),
          strips(std::min(STRIPS, scan.strips() - first_strip)) {}
};

// A parameter or a state of one strip, (d, n) in memory, as a vector for each state; null gives zeros.
static void load_strip(const Scan &scan, int64_t strip, const float *from, float factor, Float *to) {
    std::memset(to, 0, scan.padded_states() * sizeof(Float));
    if (!from) return;
    for (int64_t channel = strip * LANES, lane = 0; lane < LANES && channel < scan.channels; channel++, lane++)
        for (int64_t n = 0; n < scan.states; n++) to[n][lane] = factor * from[channel * scan.states + n];
}

static void store_strip(const Scan &scan, int64_t strip, const Float *from, float *to) {
    for (int64_t channel = strip * LANES, lane = 0; lane < LANES && channel < scan.channels; channel++, lane++)
        for (int64_t n = 0; n < scan.states; n++) to[channel * scan.states + n] = from[n][lane];
}

// A parameter of each channel of a strip; null gives zeros.
static Float load_channels(const Scan &scan, int64_t strip, const float *from) {
    const Rows rows{const_cast<float *>(from), 0, 0, 0};
    return from ? load_lanes(rows, strip * LANES, scan.channels - strip * LANES) : Float{};
}

// B or C of frames [first, first + count) as rows of floats, padded with zeros to whole blocks of states.
static void load_projection(const Scan &scan, const Rows &rows, int64_t row, int64_t first, int64_t count, float *to) {
    const int64_t padded = scan.padded_states();
    for (int64_t t = 0; t < count; t++)
        for (int64_t n = 0; n < padded; n += LANES) {
            Float values{};
            if (n < scan.states) values = load_lanes(rows, rows.offset(row, first + t, n), scan.states - n);
            if (padded - n >= LANES)
                store(to + t * padded + n, values);
            else
                std::memcpy(to + t * padded + n, &values, (padded - n) * sizeof(float));
        }
}

// One strip's frames of a chunk.
struct Frames {
    Float *delta, *drive;  // the step, and the step times u
    Float *y;              // the sum over states of C h, and D u
};

// One block of states of a strip over frames [begin, end) of a chunk; B and C in rows of `stride`.
struct Block {
    int64_t begin, end;
    const Float *log2_decay;  // A / ln 2
    const float *B, *C;
    int64_t stride;
    Float *state;  // before the first frame; `advance` replaces it by the one after the last
    Share share;   // the memory to fetch meanwhile
};

// The trace of the recurrence that the backward pass needs: (frames, BLOCK).
struct Trace {
    Float *change;  // exp(delta A) - 1
    Float *state;   // the state before each frame, and after the last
};

// h += expm1(delta A) h + delta u B and y += C h for one block.
//
// With exp in place of expm1, slow decay would lose three digits: a factor close to 1 is rounded in the same direction
// in every frame. For the same reason the changes since the block's start are summed apart from the state they change.
template <bool KEEP>
__attribute__((noinline)) static void advance(const Frames &frames, const Block &block, const Trace &trace) {
    Float h[BLOCK], a[BLOCK], moved[BLOCK] = {};
    EACH(i, BLOCK) h[i] = block.state[i], a[i] = block.log2_decay[i];
    for (int64_t t = block.begin; t < block.end; t++) {
        block.share.fetch(t);
        const float *B = block.B + t * block.stride, *C = block.C + t * block.stride;
        Float change[BLOCK], sum = frames.y[t];
        EACH(i, BLOCK) change[i] = frames.delta[t] * a[i];
        powers_minus_one(change);
        EACH(i, BLOCK) {
            if (KEEP) trace.state[t * BLOCK + i] = h[i];
            if (KEEP) trace.change[t * BLOCK + i] = change[i];
            moved[i] += change[i] * h[i] + frames.drive[t] * B[i];
            h[i] = block.state[i] + moved[i];
            sum += h[i] * C[i];
        }
        frames.y[t] = sum;
    }
    EACH(i, BLOCK) {
        block.state[i] = h[i];
        if (KEEP) trace.state[block.end * BLOCK + i] = h[i];
    }
}

}  // namespace tacomamba
