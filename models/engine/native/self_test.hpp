// The test that a freshly built library must pass before it is used: kernels against plain loops in double.
#pragma once
#include <cmath>

#include "conv.hpp"
#include "scan_backward.hpp"
#include "scan_forward.hpp"

namespace tacomamba {

class SelfTest {
    static constexpr int64_t BATCH = 2, LENGTH = 21, CHANNELS = 37, STATES = 5, TAPS = 4;
    using Values = std::vector<float>;

    static Values draw(int64_t size, uint32_t seed, float low, float high) {
        Values values(size);
        for (float &value : values) {
            seed = seed * 1664525u + 1013904223u;
            value = low + (high - low) * static_cast<float>(seed >> 8) / 16777216.0f;
        }
        return values;
    }
    static Rows rows(Values &values, int64_t width) { return {values.data(), LENGTH * width, width, 0}; }
    static double dot(const Values &a, const Values &b) {
        double sum = 0;
        for (size_t i = 0; i < a.size(); i++) sum += static_cast<double>(a[i]) * b[i];
        return sum;
    }
    static bool close(double got, double expected) {
        return std::abs(got - expected) <= 1e-4 * (1 + std::abs(expected));
    }

    Values u = draw(BATCH * LENGTH * CHANNELS, 1, -1, 1), dt = draw(BATCH * LENGTH * CHANNELS, 2, -5, 1),
           B = draw(BATCH * LENGTH * STATES, 3, -1, 1), C = draw(BATCH * LENGTH * STATES, 4, -1, 1),
           A = draw(CHANNELS * STATES, 5, -8, -0.1f), dy = draw(BATCH * LENGTH * CHANNELS, 6, -1, 1),
           weight = draw(CHANNELS * TAPS, 7, -1, 1);

    // Compares y of the scan, for one channel of one batch row, with the definition.
    bool scan_is_right(const Values &y, int64_t row, int64_t channel) const {
        double state[STATES] = {};
        for (int64_t t = 0; t < LENGTH; t++) {
            const int64_t at = (row * LENGTH + t) * CHANNELS + channel;
            const double delta = std::log1p(std::exp(static_cast<double>(dt[at])));
            double sum = 0;
            for (int64_t n = 0; n < STATES; n++) {
                const int64_t frame = (row * LENGTH + t) * STATES + n;
                state[n] = std::exp(delta * A[channel * STATES + n]) * state[n] + delta * u[at] * B[frame];
                sum += state[n] * C[frame];
            }
            if (!close(y[at], sum)) return false;
        }
        return true;
    }

    // The scan is linear in u, in B and in C: each has the same product with its gradient as y with the gradient of y.
    bool test_scan() {
        Values y(u.size()), du(u.size()), ddt(u.size()), dB(B.size()), dC(C.size()), dA(A.size());
        Values state(BATCH * CHANNELS * STATES), checkpoints(BATCH * 3 * 64 * 8);
        Scan scan{};
        scan.batch = BATCH, scan.length = LENGTH, scan.channels = CHANNELS, scan.states = STATES;
        scan.chunk = 8, scan.threads = 2, scan.softplus = 1;
        scan.u = rows(u, CHANNELS), scan.dt = rows(dt, CHANNELS), scan.B = rows(B, STATES), scan.C = rows(C, STATES);
        scan.A = A.data(), scan.checkpoints = checkpoints.data();
        scan_forward(scan, rows(y, CHANNELS), state.data());
        scan_backward(scan, {rows(dy, CHANNELS), nullptr, rows(du, CHANNELS), rows(ddt, CHANNELS), {}, rows(dB, STATES),
                             rows(dC, STATES), dA.data(), nullptr, nullptr, nullptr});
        for (int64_t row = 0; row < BATCH; row++)
            for (int64_t channel = 0; channel < CHANNELS; channel++)
                if (!scan_is_right(y, row, channel)) return false;
        const double expected = dot(y, dy);
        return close(dot(u, du), expected) && close(dot(B, dB), expected) && close(dot(C, dC), expected);
    }

    bool test_conv() {
        Values y(u.size()), dx(u.size()), dweight(weight.size());
        const Conv conv{BATCH, LENGTH, CHANNELS, TAPS, 2, 0, rows(u, CHANNELS), {}, weight.data(), nullptr, nullptr};
        conv_forward(conv, rows(y, CHANNELS));
        conv_backward(conv, {rows(dy, CHANNELS), rows(dx, CHANNELS), {}, dweight.data(), nullptr});
        for (int64_t row = 0; row < BATCH; row++)
            for (int64_t t = 0; t < LENGTH; t++)
                for (int64_t channel = 0; channel < CHANNELS; channel++) {
                    double sum = 0;
                    for (int64_t tap = std::max<int64_t>(0, TAPS - 1 - t); tap < TAPS; tap++)
                        sum += static_cast<double>(weight[channel * TAPS + tap]) *
                               u[(row * LENGTH + t - TAPS + 1 + tap) * CHANNELS + channel];
                    if (!close(y[(row * LENGTH + t) * CHANNELS + channel], sum)) return false;
                }
        return close(dot(u, dx), dot(y, dy)) && close(dot(weight, dweight), dot(y, dy));
    }

  public:
    bool passes() { return test_scan() && test_conv(); }
};

}  // namespace tacomamba
