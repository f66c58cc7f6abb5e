// The depthwise causal convolution with SiLU, in both directions.
//
// Lanes are channels. A unit of work is one batch row and up to STRIPS vectors of channels, processed chunk by
// chunk. Frames are counted from the start of the chunk; those before it have negative numbers. Shape letters as in
// interface.py.
#pragma once
#include "parallel.hpp"
#include "rows.hpp"

namespace tacomamba {

constexpr int64_t CONV_CHUNK = 32;

// Inputs of both directions; see ops.py. Absent tensors are null. Everything but Rows is contiguous.
struct Conv {
    int64_t batch, length, channels, taps, threads, silu;
    Rows x, initial_state;
    const float *weight, *bias;  // (d, k), (d)
    const int32_t *seq_idx;      // (b, l)

    int64_t groups() const { return (channels + STRIPS * LANES - 1) / (STRIPS * LANES); }
    int64_t chunks() const { return (length + CONV_CHUNK - 1) / CONV_CHUNK; }
};

// The gradient of y, then where to write those of the inputs, each like its input.
struct ConvGradients {
    Rows y, x, initial_state;
    float *weight, *bias;
};

// One unit and its current chunk.
struct ConvUnit {
    const Conv &conv;
    Float *x;               // frames -(k-1) to CONV_CHUNK, each STRIPS vectors
    Float *weight, *bias;   // (STRIPS, k), (STRIPS)
    int64_t *skipped;       // (CONV_CHUNK + k-1): how many first taps of a frame reach into another sequence
    int64_t row = 0, group = 0, strips = 0, first = 0, count = 0;

    static int64_t skipped_vectors(const Conv &conv) {
        return (CONV_CHUNK + conv.taps) * int64_t(sizeof(int64_t)) / int64_t(sizeof(Float)) + 1;
    }
    static int64_t vectors(const Conv &conv) {
        return (CONV_CHUNK + 2 * conv.taps) * STRIPS + skipped_vectors(conv);
    }
    ConvUnit(const Conv &conv, Scratch &scratch)
        : conv(conv),
          x(scratch.take((CONV_CHUNK + conv.taps - 1) * STRIPS) + (conv.taps - 1) * STRIPS),
          weight(scratch.take(STRIPS * conv.taps)),
          bias(scratch.take(STRIPS)),
          skipped(reinterpret_cast<int64_t *>(scratch.take(skipped_vectors(conv)))) {}

    int64_t channel(int64_t strip) const { return (group * STRIPS + strip) * LANES; }
    int64_t left(int64_t strip) const { return conv.channels - channel(strip); }
    // Frames `by` from the current chunk, for a strip.
    Ahead ahead(const Rows &rows, int64_t by, int64_t strip) const {
        return Ahead::of(rows, row, first + by, channel(strip));
    }
    void start(int64_t unit);
    void load_chunk(int64_t chunk, int64_t from_frame);
};

void ConvUnit::start(int64_t unit) {
    row = unit / conv.groups();
    group = unit % conv.groups();
    strips = std::min<int64_t>(STRIPS, (left(0) + LANES - 1) / LANES);
    float *weights = reinterpret_cast<float *>(weight), *biases = reinterpret_cast<float *>(bias);
    for (int64_t strip = 0; strip < strips; strip++)
        for (int64_t lane = 0; lane < LANES; lane++) {
            const bool inside = lane < left(strip);
            const int64_t at = channel(strip) + lane;
            biases[strip * LANES + lane] = inside && conv.bias ? conv.bias[at] : 0.0f;
            for (int64_t tap = 0; tap < conv.taps; tap++)
                weights[(strip * conv.taps + tap) * LANES + lane] = inside ? conv.weight[at * conv.taps + tap] : 0.0f;
        }
}

// Loads the chunk's frames from `from_frame` on; earlier ones are there already.
void ConvUnit::load_chunk(int64_t chunk, int64_t from_frame) {
    first = chunk * CONV_CHUNK;
    count = std::min(CONV_CHUNK, conv.length - first);
    for (int64_t t = from_frame; t < count; t++)
        for (int64_t strip = 0; strip < strips; strip++) {
            Float &frame = x[t * STRIPS + strip];
            const Rows &rows = first + t < 0 ? conv.initial_state : conv.x;
            const int64_t at = first + t < 0 ? first + t + conv.taps - 1 : first + t;
            frame = rows.exists() ? load_lanes(rows, rows.offset(row, at, channel(strip)), left(strip)) : Float{};
        }
    if (!conv.seq_idx) return;
    const int32_t *sequence = conv.seq_idx + row * conv.length;
    for (int64_t t = 0; t < count; t++) {
        int64_t reach = 0, before = first + t;  // frames of the same sequence before this one
        while (reach < conv.taps - 1 && before - reach > 0 && sequence[before - reach - 1] == sequence[before]) reach++;
        skipped[t] = reach == before ? 0 : conv.taps - 1 - reach;  // the row's first sequence reaches initial_state
    }
}

// Bias and taps at frame t. TAPS is the number of taps and nothing is packed, or 0 for the general case.
template <int TAPS> INLINE Float weigh(const ConvUnit &unit, const Float *weight, int64_t t, int64_t strip) {
    const int64_t taps = TAPS ? TAPS : unit.conv.taps, skipped = !TAPS && unit.conv.seq_idx ? unit.skipped[t] : 0;
    Float sum = unit.bias[strip];
    for (int64_t tap = skipped; tap < taps; tap++)
        sum += weight[tap] * unit.x[(t - taps + 1 + tap) * STRIPS + strip];
    return sum;
}

template <int TAPS> static void convolve(const ConvUnit &unit, const Rows &y) {
    for (int64_t strip = 0; strip < unit.strips; strip++) {
        const Float *weight = unit.weight + strip * unit.conv.taps;
        const Ahead next_x = unit.ahead(unit.conv.x, CONV_CHUNK, strip), next_y = unit.ahead(y, CONV_CHUNK, strip);
        for (int64_t t = 0; t < unit.count; t++) {
            next_x.fetch(t);
            next_y.fetch(t);
            Float sum = weigh<TAPS>(unit, weight, t, strip);
            if (unit.conv.silu) sum *= sigmoid(sum);
            store_lanes(y, y.offset(unit.row, unit.first + t, unit.channel(strip)), unit.left(strip), sum);
        }
    }
}

static void conv_forward(const Conv &conv, const Rows &y) {
    parallel(conv.batch * conv.groups(), conv.threads, [&](const auto &next) {
        Scratch scratch(ConvUnit::vectors(conv));
        ConvUnit unit(conv, scratch);
        const int64_t history = conv.taps - 1;
        for (int64_t index = next(); index >= 0; index = next()) {
            unit.start(index);
            for (int64_t chunk = 0; chunk < conv.chunks(); chunk++) {
                unit.load_chunk(chunk, chunk ? 0 : -history);
                conv.taps == 4 && !conv.seq_idx ? convolve<4>(unit, y) : convolve<0>(unit, y);
                std::memmove(unit.x - history * STRIPS, unit.x + (CONV_CHUNK - history) * STRIPS,
                             history * STRIPS * sizeof(Float));
            }
        }
    });
}

// Sums over frames of one unit, in double.
struct ConvTotals {
    Double *weight, *bias;  // (STRIPS, k), (STRIPS)

    static int64_t vectors(const Conv &conv) { return 2 * STRIPS * (conv.taps + 1); }
    ConvTotals(const Conv &conv, Float *memory)
        : weight(reinterpret_cast<Double *>(memory)), bias(weight + STRIPS * conv.taps) {}
};

// Gradients of the sums before SiLU, frames 0 to CONV_CHUNK + k-1 of one chunk; and their sums, the
// gradients of the weights.
template <int TAPS>
static void differentiate(const ConvUnit &unit, const ConvGradients &gradients, Float *slope,
                          const ConvTotals &totals) {
    const int64_t taps = TAPS ? TAPS : unit.conv.taps;
    for (int64_t strip = 0; strip < unit.strips; strip++) {
        const Float *weight = unit.weight + strip * taps;
        const Ahead next_x = unit.ahead(unit.conv.x, -CONV_CHUNK, strip);
        const Ahead next_y = unit.ahead(gradients.y, -CONV_CHUNK, strip);
        const Ahead next_dx = unit.ahead(gradients.x, -CONV_CHUNK, strip);
        Float sum_bias{};
        for (int64_t t = 0; t < unit.count; t++) {
            next_x.fetch(t);
            next_y.fetch(t);
            next_dx.fetch(t);
            const int64_t offset = gradients.y.offset(unit.row, unit.first + t, unit.channel(strip));
            Float gradient = load_lanes(gradients.y, offset, unit.left(strip));
            if (unit.conv.silu) {
                const Float sum = weigh<TAPS>(unit, weight, t, strip), open = sigmoid(sum);
                gradient *= open * (1.0f + sum * (1.0f - open));
            }
            slope[t * STRIPS + strip] = gradient;
            sum_bias += gradient;
        }
        totals.bias[strip] += __builtin_convertvector(sum_bias, Double);
        for (int64_t tap = 0; tap < taps; tap++) {
            Float sum{};
            for (int64_t t = 0; t < unit.count; t++)
                if (TAPS || !unit.conv.seq_idx || tap >= unit.skipped[t])
                    sum += slope[t * STRIPS + strip] * unit.x[(t - taps + 1 + tap) * STRIPS + strip];
            totals.weight[strip * taps + tap] += __builtin_convertvector(sum, Double);
        }
    }
}

// Gradients of frames [from_frame, to_frame): of x or, before its start, of the initial state.
template <int TAPS>
static void spread(const ConvUnit &unit, const Float *slope, int64_t from_frame, int64_t to_frame, const Rows &to,
                   int64_t first_row) {
    const int64_t taps = TAPS ? TAPS : unit.conv.taps;
    for (int64_t strip = 0; strip < unit.strips; strip++) {
        const Float *weight = unit.weight + strip * taps;
        for (int64_t s = from_frame; s < to_frame; s++) {
            Float sum{};
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t t = s + taps - 1 - tap;
                if (TAPS || (t >= 0 && (!unit.conv.seq_idx || tap >= unit.skipped[t])))
                    sum += weight[tap] * slope[t * STRIPS + strip];
            }
            store_lanes(to, to.offset(unit.row, first_row + s, unit.channel(strip)), unit.left(strip), sum);
        }
    }
}

// One unit from its last chunk to its first; `slope` has a chunk and the k-1 frames after it.
static void conv_backward_unit(ConvUnit &unit, const ConvGradients &gradients, Float *slope, const ConvTotals &totals) {
    const Conv &conv = unit.conv;
    const int64_t history = conv.taps - 1;
    const bool simple = conv.taps == 4 && !conv.seq_idx;
    std::memset(slope, 0, (CONV_CHUNK + history) * STRIPS * sizeof(Float));
    std::fill_n(unit.skipped, CONV_CHUNK + history, 0);
    for (int64_t chunk = conv.chunks() - 1; chunk >= 0; chunk--) {
        unit.load_chunk(chunk, -history);
        simple ? differentiate<4>(unit, gradients, slope, totals) : differentiate<0>(unit, gradients, slope, totals);
        simple ? spread<4>(unit, slope, 0, unit.count, gradients.x, unit.first)
               : spread<0>(unit, slope, 0, unit.count, gradients.x, unit.first);
        if (chunk == 0) break;
        std::memmove(slope + CONV_CHUNK * STRIPS, slope, history * STRIPS * sizeof(Float));
        std::memmove(unit.skipped + CONV_CHUNK, unit.skipped, history * sizeof(int64_t));
    }
    if (gradients.initial_state.exists()) spread<0>(unit, slope, -history, 0, gradients.initial_state, history);
}

// Sums over the batch, in its order, for the strips of one group of channels.
static void conv_reduce(const Conv &conv, Float *memory, int64_t group, const ConvGradients &gradients) {
    const int64_t lanes = STRIPS * LANES;
    for (int64_t lane = 0; lane < lanes && group * lanes + lane < conv.channels; lane++) {
        const int64_t channel = group * lanes + lane, strip = lane / LANES;
        const auto total = [&](int64_t vector, auto member) {
            double sum = 0;
            for (int64_t row = 0; row < conv.batch; row++) {
                const ConvTotals totals(conv, memory + (row * conv.groups() + group) * ConvTotals::vectors(conv));
                sum += reinterpret_cast<const double *>(totals.*member)[vector * LANES + lane % LANES];
            }
            return static_cast<float>(sum);
        };
        for (int64_t tap = 0; tap < conv.taps; tap++)
            gradients.weight[channel * conv.taps + tap] = total(strip * conv.taps + tap, &ConvTotals::weight);
        if (gradients.bias) gradients.bias[channel] = total(strip, &ConvTotals::bias);
    }
}

static void conv_backward(const Conv &conv, const ConvGradients &gradients) {
    const int64_t units = conv.batch * conv.groups(), size = ConvTotals::vectors(conv);
    Scratch scratch(units * size);
    Float *totals = scratch.take(units * size);
    std::memset(totals, 0, units * size * sizeof(Float));
    parallel(units, conv.threads, [&](const auto &next) {
        const int64_t slopes = (CONV_CHUNK + conv.taps - 1) * STRIPS;
        Scratch scratch(ConvUnit::vectors(conv) + slopes);
        Float *slope = scratch.take(slopes);
        ConvUnit unit(conv, scratch);
        for (int64_t index = next(); index >= 0; index = next()) {
            unit.start(index);
            conv_backward_unit(unit, gradients, slope, ConvTotals(conv, totals + index * size));
        }
    });
    for (int64_t group = 0; group < conv.groups(); group++) conv_reduce(conv, totals, group, gradients);
}

}  // namespace tacomamba
