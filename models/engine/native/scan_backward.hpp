// The gradients of the selective scan, from the last frame to the first: each chunk's states are recomputed from
// its checkpoint, one block of states at a time, and used immediately.
#pragma once
#include "scan.hpp"

namespace tacomamba {

// Gradients of the outputs (y; final_state or null), then where to write those of the inputs, each like its input.
struct ScanGradients {
    Rows y;
    const float *final_state;
    Rows u, dt, z, B, C;
    float *A, *D, *dt_bias, *initial_state;
};

// Sums over frames, in double since thousands of terms may nearly cancel; one set a unit.
struct Totals {
    Double *A;            // (STRIPS, n padded)
    Double *D, *dt_bias;  // (STRIPS)

    static int64_t vectors(const Scan &scan) { return 2 * STRIPS * (scan.padded_states() + 2); }
    Totals(const Scan &scan, Float *memory)
        : A(reinterpret_cast<Double *>(memory)), D(A + STRIPS * scan.padded_states()), dt_bias(D + STRIPS) {}
};

// One strip's frames of a chunk, with the additional values of the backward pass.
struct BackwardFrames : Frames {
    Float *u;
    Float *slope;                    // the derivative of the step by its raw value
    Float *gated;                    // the gradient of y before the gate; from frame -1 on, where it is 0
    Float *gate_slope;               // the gradient of the output times the derivative of silu(z)
    Float *from_drive, *from_decay;  // gradients of the drive, and of the step through the decay
};

// The inputs and sums of the backward pass over one block of states.
struct BackwardBlock {
    const Float *decay;  // A
    Float *carry;        // the gradient of the state after the last frame; then that before the first
    Double *dA;
    Float *dB, *dC;  // (frames, blocks): in each vector BLOCK sums for every quarter of the lanes
};

// The backward pass over a block. Changes of the state's gradient are summed apart from it, as in `advance`.
__attribute__((noinline)) static void retreat(const BackwardFrames &frames, const Block &block, const Trace &trace,
                                              const BackwardBlock &back) {
    Float g[BLOCK], moved[BLOCK], da[BLOCK] = {};
    EACH(i, BLOCK) moved[i] = frames.gated[block.end - 1] * block.C[(block.end - 1) * block.stride + i];
    EACH(i, BLOCK) g[i] = back.carry[i] + moved[i];
    for (int64_t t = block.end - 1; t >= block.begin; t--) {
        block.share.fetch(t);
        const float *B = block.B + t * block.stride, *C_before = block.C + (t - 1) * block.stride;
        const Float *change = trace.change + t * BLOCK, *before = trace.state + t * BLOCK, *after = before + BLOCK;
        Float from_drive = frames.from_drive[t], from_decay = frames.from_decay[t], dB[BLOCK], dC[BLOCK];
        EACH(i, BLOCK) {
            dC[i] = after[i] * frames.gated[t];
            dB[i] = g[i] * frames.drive[t];
            from_drive += g[i] * B[i];
            const Float from_exponent = g[i] * (before[i] + change[i] * before[i]);
            from_decay += from_exponent * back.decay[i];
            da[i] += from_exponent * frames.delta[t];
            moved[i] += change[i] * g[i] + frames.gated[t - 1] * C_before[i];
            g[i] = back.carry[i] + moved[i];
        }
        back.dB[t * block.stride / BLOCK] += sum_quarters(dB);
        back.dC[t * block.stride / BLOCK] += sum_quarters(dC);
        frames.from_drive[t] = from_drive;
        frames.from_decay[t] = from_decay;
    }
    EACH(i, BLOCK) {
        back.carry[i] = g[i];
        back.dA[i] += __builtin_convertvector(da[i], Double);
    }
}

class BackwardUnit {
    const Scan &scan;
    const ScanGradients &gradients;
    Float *decay, *log2_decay, *carry;  // (STRIPS, n padded)
    Float *state;                       // (n padded)
    BackwardFrames frames;
    Trace trace;
    Float *dB, *dC;  // (frames, blocks)
    float *B, *C;    // (frames, n padded), C from frame -1 on, where it is 0
    int64_t row = 0, first = 0, count = 0;

    void load_frames(int64_t strip);
    void store_frames(int64_t strip, Double &dD, Double &dt_bias);
    Fetch fetch(int64_t strip, int64_t chunk) const;
    void retreat_strip(int64_t index, int64_t strip, int64_t chunk, const Totals &totals);
    void store_sums(const Float *sums, float *to) const;
    static int64_t projection_vectors(const Scan &scan) {
        return (scan.chunk + 1) * scan.padded_states() / LANES + 1;
    }

  public:
    static int64_t vectors(const Scan &scan) {
        const int64_t states = scan.padded_states(), blocks = states / BLOCK;
        return (3 * STRIPS + 1) * states + 9 * scan.chunk + 1 + (2 * scan.chunk + 1) * BLOCK + 2 * scan.chunk * blocks +
               2 * projection_vectors(scan);
    }
    BackwardUnit(const Scan &scan, const ScanGradients &gradients, Scratch &scratch);
    void run(const Unit &unit, const Totals &totals, float *partial_B, float *partial_C);
};

BackwardUnit::BackwardUnit(const Scan &scan, const ScanGradients &gradients, Scratch &scratch)
    : scan(scan), gradients(gradients) {
    const int64_t states = scan.padded_states();
    for (Float **piece : {&decay, &log2_decay, &carry}) *piece = scratch.take(STRIPS * states);
    state = scratch.take(states);
    for (Float **piece : {&frames.delta, &frames.drive, &frames.y, &frames.u, &frames.slope, &frames.gate_slope,
                          &frames.from_drive, &frames.from_decay})
        *piece = scratch.take(scan.chunk);
    frames.gated = scratch.take(scan.chunk + 1) + 1;
    frames.gated[-1] = Float{};
    trace.change = scratch.take(scan.chunk * BLOCK);
    trace.state = scratch.take((scan.chunk + 1) * BLOCK);
    for (Float **piece : {&dB, &dC}) *piece = scratch.take(scan.chunk * states / BLOCK);
    for (float **piece : {&B, &C}) *piece = reinterpret_cast<float *>(scratch.take(projection_vectors(scan)));
    std::memset(C, 0, states * sizeof(float));
    C += states;
}

void BackwardUnit::load_frames(int64_t strip) {
    const Float bias = load_channels(scan, strip, scan.dt_bias), skip = load_channels(scan, strip, scan.D);
    const int64_t channel = strip * LANES, left = scan.channels - channel;
    for (int64_t t = 0; t < count; t++) {
        const Float u = load_lanes(scan.u, scan.u.offset(row, first + t, channel), left);
        const Float raw = load_lanes(scan.dt, scan.dt.offset(row, first + t, channel), left) + bias;
        const Float dy = load_lanes(gradients.y, gradients.y.offset(row, first + t, channel), left);
        frames.slope[t] = splat(1.0f);
        frames.delta[t] = scan.softplus ? softplus(raw, frames.slope[t]) : raw;
        frames.u[t] = u;
        frames.drive[t] = frames.delta[t] * u;
        frames.y[t] = skip * u;
        frames.gated[t] = dy;
        frames.from_drive[t] = frames.from_decay[t] = Float{};
        if (scan.z.exists()) {
            const Float z = load_lanes(scan.z, scan.z.offset(row, first + t, channel), left), open = sigmoid(z);
            frames.gated[t] = dy * (z * open);
            frames.gate_slope[t] = dy * (open * (1.0f + z * (1.0f - open)));
        }
    }
}

void BackwardUnit::store_frames(int64_t strip, Double &dD, Double &dt_bias) {
    const Float skip = load_channels(scan, strip, scan.D);
    const int64_t channel = strip * LANES, left = scan.channels - channel;
    Float sum_D{}, sum_bias{};
    for (int64_t t = 0; t < count; t++) {
        const Float du = frames.from_drive[t] * frames.delta[t] + skip * frames.gated[t];
        const Float ddt = (frames.from_drive[t] * frames.u[t] + frames.from_decay[t]) * frames.slope[t];
        store_lanes(gradients.u, gradients.u.offset(row, first + t, channel), left, du);
        store_lanes(gradients.dt, gradients.dt.offset(row, first + t, channel), left, ddt);
        if (scan.z.exists()) {
            const Float dz = frames.gate_slope[t] * frames.y[t];
            store_lanes(gradients.z, gradients.z.offset(row, first + t, channel), left, dz);
        }
        sum_D += frames.gated[t] * frames.u[t];
        sum_bias += ddt;
    }
    dD += __builtin_convertvector(sum_D, Double);
    dt_bias += __builtin_convertvector(sum_bias, Double);
}

// The memory that this chunk writes, and that the one before it reads.
Fetch BackwardUnit::fetch(int64_t strip, int64_t chunk) const {
    Fetch fetch;
    const int64_t channel = strip * LANES;
    for (const Rows *rows : {&gradients.u, &gradients.dt, &gradients.z}) fetch.add(*rows, row, first, channel);
    if (chunk == 0) return fetch;
    for (const Rows *rows : {&gradients.y, &scan.u, &scan.dt, &scan.z})
        fetch.add(*rows, row, first - scan.chunk, channel);
    const int64_t bytes = scan.padded_states() * static_cast<int64_t>(sizeof(Float));
    fetch.add({reinterpret_cast<const char *>(scan.checkpoint(row, chunk - 1, strip)), bytes / scan.chunk});
    return fetch;
}

// One strip over the chunk, from one start of a packed sequence back to the one before.
void BackwardUnit::retreat_strip(int64_t index, int64_t strip, int64_t chunk, const Totals &totals) {
    const int64_t padded = scan.padded_states(), passes = 2 * padded / BLOCK;
    const Fetch fetch = this->fetch(strip, chunk);
    load_frames(strip);
    for (int64_t end = count, begin; end > 0; end = begin) {
        for (begin = end - 1; begin > 0 && !scan.starts(row, first + begin);) begin--;
        const bool fresh = scan.starts(row, first + begin);
        if (fresh)
            std::memset(state, 0, padded * sizeof(Float));
        else
            std::memcpy(state, scan.checkpoint(row, chunk, strip), padded * sizeof(Float));
        for (int64_t n = 0; n < padded; n += BLOCK) {
            const int64_t at = index * padded + n, pass = 2 * n / BLOCK;
            Block block{begin, end, log2_decay + at, B + n, C + n, padded, state + n, Share(fetch, pass, passes)};
            advance<true>(frames, block, trace);
            block.share = Share(fetch, pass + 1, passes);
            retreat(frames, block, trace, {decay + at, carry + at, totals.A + at, dB + n / BLOCK, dC + n / BLOCK});
        }
        if (fresh) std::memset(carry + index * padded, 0, padded * sizeof(Float));
    }
    store_frames(strip, totals.D[index], totals.dt_bias[index]);
}

// Sums B's or C's gradient over the quarters of the lanes: (frames, blocks) -> (frames, n padded).
void BackwardUnit::store_sums(const Float *sums, float *to) const {
    for (int64_t i = 0; i < count * scan.padded_states() / BLOCK; i++) {
        const float *quarters = reinterpret_cast<const float *>(sums + i);
        Quarter sum = load<Quarter>(quarters);
        for (int lane = 4; lane < LANES; lane += 4) sum += load<Quarter>(quarters + lane);
        store(to + i * BLOCK, sum);
    }
}

// The gradients of one unit; those of B and C, which all groups of channels share, are written to this group's part
// of `partial_B` and `partial_C` (groups, b, l, n padded).
void BackwardUnit::run(const Unit &unit, const Totals &totals, float *partial_B, float *partial_C) {
    const int64_t padded = scan.padded_states(), state_offset = unit.row * scan.channels * scan.states;
    const float *from_final = gradients.final_state ? gradients.final_state + state_offset : nullptr;
    row = unit.row;
    for (int64_t i = 0; i < unit.strips; i++) {
        load_strip(scan, unit.first_strip + i, scan.A, 1.0f, decay + i * padded);
        load_strip(scan, unit.first_strip + i, scan.A, LOG2_E, log2_decay + i * padded);
        load_strip(scan, unit.first_strip + i, from_final, 1.0f, carry + i * padded);
    }
    for (int64_t chunk = scan.chunks() - 1; chunk >= 0; chunk--) {
        first = chunk * scan.chunk;
        count = std::min(scan.chunk, scan.length - first);
        load_projection(scan, scan.B, row, first, count, B);
        load_projection(scan, scan.C, row, first, count, C);
        for (Float *sums : {dB, dC}) std::memset(sums, 0, count * padded / BLOCK * sizeof(Float));
        for (int64_t i = 0; i < unit.strips; i++) retreat_strip(i, unit.first_strip + i, chunk, totals);
        const int64_t offset = ((unit.group * scan.batch + row) * scan.length + first) * padded;
        store_sums(dB, partial_B + offset);
        store_sums(dC, partial_C + offset);
    }
    if (gradients.initial_state)
        for (int64_t i = 0; i < unit.strips; i++)
            store_strip(scan, unit.first_strip + i, carry + i * padded, gradients.initial_state + state_offset);
}

// Sums over the groups of channels, in their order: (groups, b, l, n padded) -> (b, l, n).
static void reduce_groups(const Scan &scan, const float *partial, int64_t row, const Rows &to) {
    const int64_t padded = scan.padded_states(), group_size = scan.batch * scan.length * padded;
    for (int64_t t = 0; t < scan.length; t++)
        for (int64_t n = 0; n < scan.states; n += LANES) {
            Float sum{};
            for (int64_t group = 0; group < scan.groups(); group++) {
                Float part{};
                const float *from = partial + group * group_size + (row * scan.length + t) * padded + n;
                std::memcpy(&part, from, std::min<int64_t>(LANES, padded - n) * sizeof(float));
                sum += part;
            }
            store_lanes(to, to.offset(row, t, n), scan.states - n, sum);
        }
}

// Sums over the batch, in its order, for the channels of one strip.
static void reduce_totals(const Scan &scan, Float *memory, int64_t strip, const ScanGradients &gradients) {
    const int64_t index = strip % STRIPS;
    for (int64_t lane = 0; lane < LANES && strip * LANES + lane < scan.channels; lane++) {
        const int64_t channel = strip * LANES + lane;
        const auto total = [&](Double *Totals::*member, int64_t vector) {
            double sum = 0;
            for (int64_t row = 0; row < scan.batch; row++) {
                const int64_t unit = row * scan.groups() + strip / STRIPS;
                const Totals totals(scan, memory + unit * Totals::vectors(scan));
                sum += (totals.*member)[vector][lane];
            }
            return static_cast<float>(sum);
        };
        for (int64_t n = 0; n < scan.states; n++)
            gradients.A[channel * scan.states + n] = total(&Totals::A, index * scan.padded_states() + n);
        if (gradients.D) gradients.D[channel] = total(&Totals::D, index);
        if (gradients.dt_bias) gradients.dt_bias[channel] = total(&Totals::dt_bias, index);
    }
}

static void scan_backward(const Scan &scan, const ScanGradients &gradients) {
    const int64_t units = scan.batch * scan.groups(), size = Totals::vectors(scan);
    const int64_t partial_size = scan.groups() * scan.batch * scan.length * scan.padded_states();
    Scratch memory(units * size + 2 * (partial_size / LANES + 1));
    Float *totals = memory.take(units * size);
    std::memset(totals, 0, units * size * sizeof(Float));
    float *partial_B = reinterpret_cast<float *>(memory.take(partial_size / LANES + 1));
    float *partial_C = reinterpret_cast<float *>(memory.take(partial_size / LANES + 1));
    parallel(units, scan.threads, [&](const auto &next) {
        Scratch scratch(BackwardUnit::vectors(scan));
        BackwardUnit work(scan, gradients, scratch);
        for (int64_t unit = next(); unit >= 0; unit = next())
            work.run(Unit(scan, unit), Totals(scan, totals + unit * size), partial_B, partial_C);
    });
    for (int64_t strip = 0; strip < scan.strips(); strip++) reduce_totals(scan, totals, strip, gradients);
    for (int64_t row = 0; row < scan.batch; row++) {
        reduce_groups(scan, partial_B, row, gradients.B);
        reduce_groups(scan, partial_C, row, gradients.C);
    }
}

}  // namespace tacomamba
