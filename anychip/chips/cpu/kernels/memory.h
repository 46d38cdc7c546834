// One pass's working memory: kept by each calling thread from one pass to the next, 64-byte aligned.
#pragma once
#include <cstdint>
#include <vector>

namespace {

inline float* working_memory(int64_t floats) {
    thread_local std::vector<float> memory;
    if ((int64_t)memory.size() < floats + 16) memory.resize(floats + 16);
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (64 - at % 64) % 64 / sizeof(float);
}

}  // namespace
