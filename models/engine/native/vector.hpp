// Vectors of floats as wide as the CPU's registers, and the elementary functions the kernels need.
//
// GCC's vector extensions, which Clang understands too: arithmetic on a vector is arithmetic on each lane, and the
// compiler lowers it to the CPU's instructions. Never compile with -ffast-math: rounding to integers and the order of
// sums are intended as written.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

namespace tacomamba {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr const char *INSTRUCTIONS = "AVX-512";
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr const char *INSTRUCTIONS = "AVX2";
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr const char *INSTRUCTIONS = "AVX";
#elif defined(__ARM_NEON)
constexpr int LANES = 4;
constexpr const char *INSTRUCTIONS = "NEON";
#else
constexpr int LANES = 4;
constexpr const char *INSTRUCTIONS = "128-bit vectors";
#endif

typedef float Float __attribute__((vector_size(4 * LANES)));
typedef float Quarter __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
typedef double Double __attribute__((vector_size(8 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < count; i++)

INLINE Float splat(float value) { return value - Float{}; }

// Lane i is lane pattern(i) of the two vectors one after the other.
template <class Pattern, size_t... I>
INLINE Float shuffle(Float a, Float b, Pattern pattern, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, pattern(I)...);
#else
    return __builtin_shuffle(a, b, Int{pattern(I)...});
#endif
}

template <class Vector> INLINE Vector load(const void *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector> INLINE void store(void *to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

INLINE Float from_bfloat16(Half bits) { return (Float)(__builtin_convertvector(bits, Bits) << 16); }

// To the nearest bfloat16, ties to even; NaN stays NaN.
INLINE Half to_bfloat16(Float value) {
    const Bits bits = (Bits)value;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(value == value ? rounded : (bits >> 16) | 0x40, Half);
}

// Sums of the lanes of four vectors, as far as they lie in a quarter of four lanes: (a, b, c, d) in each quarter.
INLINE Float sum_quarters(const Float (&v)[4]) {
    constexpr auto indices = std::make_index_sequence<LANES>();
    constexpr auto quarter = [](int i, int a, int b, int c, int d) { return i / 4 * 4 + (int[]){a, b, c, d}[i % 4]; };
    constexpr auto low = [=](int i) constexpr { return quarter(i, 0, LANES, 1, LANES + 1); };
    constexpr auto high = [=](int i) constexpr { return quarter(i, 2, LANES + 2, 3, LANES + 3); };
    constexpr auto low_pairs = [=](int i) constexpr { return quarter(i, 0, 1, LANES, LANES + 1); };
    constexpr auto high_pairs = [=](int i) constexpr { return quarter(i, 2, 3, LANES + 2, LANES + 3); };
    const Float ab = shuffle(v[0], v[1], low, indices) + shuffle(v[0], v[1], high, indices);
    const Float cd = shuffle(v[2], v[3], low, indices) + shuffle(v[2], v[3], high, indices);
    return shuffle(ab, cd, low_pairs, indices) + shuffle(ab, cd, high_pairs, indices);
}

// Adding this to a float of magnitude below 2^22 rounds it to an integer, which is then in the low bits, plus 127.
constexpr float ROUND_WITH_BIAS = 12582912.0f + 127.0f;

// (2^f - 1) / f for |f| <= 1/2 from the highest power down: minimax of relative error 1e-8, so accurate near 0 as well.
constexpr float SMALL_POWER[] = {1.5403512225e-4f, 1.3390735257e-3f, 9.6182376146e-3f,
                                 5.5503573269e-2f, 2.4022649229e-1f, 6.9314718246e-1f};

// The larger of the two in each lane, NaN where `x` is NaN.
INLINE Float at_least(float bound, Float x) {
#if defined(__AVX512F__)  // GCC compiles the other branch to a comparison and a masked move
    __asm__("vmaxps %1, %2, %0" : "=v"(x) : "v"(x), "v"(splat(bound)));
    return x;
#else
    return x < bound ? splat(bound) : x;
#endif
}

// x becomes 2^x - 1 for x <= 127: relative error 2e-7 near 0 too, exactly 0 at 0, exactly -1 below -126. Several
// vectors at once and step by step, since the steps for one of them depend on each other.
template <int COUNT> INLINE void powers_minus_one(Float (&x)[COUNT]) {
    Float scale[COUNT], p[COUNT];
    EACH(i, COUNT) x[i] = at_least(-126.0f, x[i]);
    EACH(i, COUNT) scale[i] = x[i] + ROUND_WITH_BIAS;
    EACH(i, COUNT) x[i] -= scale[i] - ROUND_WITH_BIAS;
    EACH(i, COUNT) scale[i] = (Float)((Int)scale[i] << 23);  // 2^n, n the integer nearest to x
    EACH(i, COUNT) p[i] = SMALL_POWER[0] * x[i] + SMALL_POWER[1];
    EACH(i, COUNT) p[i] = p[i] * x[i] + SMALL_POWER[2];
    EACH(i, COUNT) p[i] = p[i] * x[i] + SMALL_POWER[3];
    EACH(i, COUNT) p[i] = p[i] * x[i] + SMALL_POWER[4];
    EACH(i, COUNT) p[i] = p[i] * x[i] + SMALL_POWER[5];
    EACH(i, COUNT) p[i] = p[i] * x[i];
    EACH(i, COUNT) x[i] = scale[i] * p[i] + (scale[i] - 1.0f);
}

// e^x, 0 below -87.3 and held at e^87.9 above: finite for every finite x.
INLINE Float exponential(Float x) {
    const Float held = x > 87.9f ? splat(87.9f) : at_least(-87.3f, x);
    const Float rounded = held * 1.44269504f + ROUND_WITH_BIAS;
    const Float n = rounded - ROUND_WITH_BIAS;
    const Float rest = (held - n * 0.693359375f) + n * 2.12194440e-4f;  // held - n ln 2, ln 2 in two parts
    const Float f = rest * 1.44269504f, scale = (Float)((Int)rounded << 23);
    Float p = splat(SMALL_POWER[0]);
    EACH(i, 5) p = p * f + SMALL_POWER[i + 1];
    return x < -87.3f ? Float{} : scale * (p * f) + scale;
}

// log(1 + y) for 0 <= y <= 1, as 2 artanh(y / (2 + y)): relative error 2e-7 near 0 too.
INLINE Float log_one_plus(Float y) {
    const Float s = y / (2.0f + y), q = s * s;
    Float p = 2.8178334236e-1f * q + 2.7960601449e-1f;
    p = p * q + 4.0024909377e-1f;
    p = p * q + 6.6666316986e-1f;
    return s * (p * q + 2.0f);
}

INLINE Float absolute(Float x) { return (Float)((Int)x & 0x7fffffff); }

INLINE Float sigmoid(Float x) { return 1.0f / (1.0f + exponential(-x)); }

// softplus(x) = log(1 + e^x), and in `slope` its derivative, the sigmoid; exactly 0 for x below -87.3.
INLINE Float softplus(Float x, Float &slope) {
    const Float e = exponential(-absolute(x));
    slope = (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
    return (x > 0.0f ? x : Float{}) + log_one_plus(e);
}

}  // namespace tacomamba
