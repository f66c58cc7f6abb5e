// The selective scan from the first frame to the last.
#pragma once
#include "scan.hpp"

namespace tacomamba {

class ForwardUnit {
    const Scan &scan;
    const Rows &y;
    float *final_state;
    Float *log2_decay, *state;  // (STRIPS, n padded)
    Frames frames;
    Float *gate;
    float *B, *C;  // (frames, n padded)
    int64_t row = 0, first = 0, count = 0;  // of the current chunk

    static int64_t projection_vectors(const Scan &scan) { return scan.chunk * scan.padded_states() / LANES + 1; }
    void load_frames(int64_t strip);
    void store_frames(int64_t strip);
    void advance_strip(int64_t strip, const Float *log2_decay, Float *state);

  public:
    static int64_t vectors(const Scan &scan) {
        return 2 * STRIPS * scan.padded_states() + 4 * scan.chunk + 2 * projection_vectors(scan);
    }
    ForwardUnit(const Scan &scan, const Rows &y, float *final_state, Scratch &scratch)
        : scan(scan), y(y), final_state(final_state) {
        for (Float **piece : {&log2_decay, &state}) *piece = scratch.take(STRIPS * scan.padded_states());
        for (Float **piece : {&frames.delta, &frames.drive, &frames.y, &gate}) *piece = scratch.take(scan.chunk);
        for (float **piece : {&B, &C}) *piece = reinterpret_cast<float *>(scratch.take(projection_vectors(scan)));
    }
    void run(const Unit &unit);
};

void ForwardUnit::load_frames(int64_t strip) {
    const Float bias = load_channels(scan, strip, scan.dt_bias), skip = load_channels(scan, strip, scan.D);
    const int64_t channel = strip * LANES, left = scan.channels - channel;
    Float slope;
    for (int64_t t = 0; t < count; t++) {
        const Float u = load_lanes(scan.u, scan.u.offset(row, first + t, channel), left);
        const Float raw = load_lanes(scan.dt, scan.dt.offset(row, first + t, channel), left) + bias;
        frames.delta[t] = scan.softplus ? softplus(raw, slope) : raw;
        frames.drive[t] = frames.delta[t] * u;
        frames.y[t] = skip * u;
        if (scan.z.exists()) {
            const Float z = load_lanes(scan.z, scan.z.offset(row, first + t, channel), left);
            gate[t] = z * sigmoid(z);
        }
    }
}

void ForwardUnit::store_frames(int64_t strip) {
    const int64_t channel = strip * LANES, left = scan.channels - channel;
    for (int64_t t = 0; t < count; t++) {
        const Float value = scan.z.exists() ? frames.y[t] * gate[t] : frames.y[t];
        store_lanes(y, y.offset(row, first + t, channel), left, value);
    }
}

// One strip over the chunk, from one start of a packed sequence to the next.
void ForwardUnit::advance_strip(int64_t strip, const Float *log2_decay, Float *state) {
    load_frames(strip);
    Fetch fetch;
    for (const Rows *rows : {&scan.u, &scan.dt, &scan.z}) fetch.add(*rows, row, first + scan.chunk, strip * LANES);
    fetch.add(y, row, first, strip * LANES);
    const int64_t padded = scan.padded_states();
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && !scan.starts(row, first + end);) end++;
        if (scan.starts(row, first + begin)) std::memset(state, 0, padded * sizeof(Float));
        for (int64_t n = 0; n < padded; n += BLOCK) {
            const Share share(fetch, n / BLOCK, padded / BLOCK);
            advance<false>(frames, {begin, end, log2_decay + n, B + n, C + n, padded, state + n, share}, {});
        }
    }
    store_frames(strip);
}

void ForwardUnit::run(const Unit &unit) {
    const int64_t padded = scan.padded_states(), state_offset = unit.row * scan.channels * scan.states;
    row = unit.row;
    for (int64_t i = 0; i < unit.strips; i++) {
        load_strip(scan, unit.first_strip + i, scan.A, LOG2_E, log2_decay + i * padded);
        const float *initial = scan.initial_state ? scan.initial_state + state_offset : nullptr;
        load_strip(scan, unit.first_strip + i, initial, 1.0f, state + i * padded);
    }
    for (int64_t chunk = 0; chunk < scan.chunks(); chunk++) {
        first = chunk * scan.chunk;
        count = std::min(scan.chunk, scan.length - first);
        load_projection(scan, scan.B, row, first, count, B);
        load_projection(scan, scan.C, row, first, count, C);
        for (int64_t i = 0; i < unit.strips; i++) {
            const int64_t strip = unit.first_strip + i;
            if (scan.checkpoints) scan.keep(row, chunk, strip, state + i * padded);
            advance_strip(strip, log2_decay + i * padded, state + i * padded);
        }
    }
    for (int64_t i = 0; i < unit.strips; i++)
        store_strip(scan, unit.first_strip + i, state + i * padded, final_state + state_offset);
}

static void scan_forward(const Scan &scan, const Rows &y, float *final_state) {
    parallel(scan.batch * scan.groups(), scan.threads, [&](const auto &next) {
        Scratch scratch(ForwardUnit::vectors(scan));
        ForwardUnit work(scan, y, final_state, scratch);
        for (int64_t unit = next(); unit >= 0; unit = next()) work.run(Unit(scan, unit));
    });
}

}  // namespace tacomamba
