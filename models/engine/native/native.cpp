// The C interface of the kernels, which ops.py calls through ctypes. 0 is success, 1 means out of memory.
#include "self_test.hpp"

namespace {

template <class Work> int guarded(const Work &work) noexcept {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}  // namespace

extern "C" {

int tacomamba_scan_forward(const tacomamba::Scan *scan, const tacomamba::Rows *y, float *final_state) {
    return guarded([&] { tacomamba::scan_forward(*scan, *y, final_state); });
}

int tacomamba_scan_backward(const tacomamba::Scan *scan, const tacomamba::ScanGradients *gradients) {
    return guarded([&] { tacomamba::scan_backward(*scan, *gradients); });
}

int tacomamba_conv_forward(const tacomamba::Conv *conv, const tacomamba::Rows *y) {
    return guarded([&] { tacomamba::conv_forward(*conv, *y); });
}

int tacomamba_conv_backward(const tacomamba::Conv *conv, const tacomamba::ConvGradients *gradients) {
    return guarded([&] { tacomamba::conv_backward(*conv, *gradients); });
}

// Returns 0 if the kernels compute correct numbers on this CPU, 2 if not.
int tacomamba_self_test() {
    bool passes = false;
    const int status = guarded([&] { passes = tacomamba::SelfTest().passes(); });
    return status ? status : passes ? 0 : 2;
}

const char *tacomamba_instructions() { return tacomamba::INSTRUCTIONS; }
}
