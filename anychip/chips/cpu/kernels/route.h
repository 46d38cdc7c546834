// How a router scores and chooses (`ops.experts.RouteRule`); filled by route.py and block.py field by field.
#pragma once
#include <cstdint>

constexpr int64_t SQRTSOFTPLUS = 0, SIGMOID = 1, SOFTMAX = 2;

struct RouteRule {
    int64_t score, groups, kept, normalize;
};
