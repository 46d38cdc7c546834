// Eight-lane fp32 vectors in GCC's portable extension, and the elementary functions that the kernels need.
// No fast-math is assumed: comparisons are written so that a NaN stays a NaN.
#pragma once
#include <cstdint>
#include <cstring>

typedef float f8 __attribute__((vector_size(32)));
typedef float f8u __attribute__((vector_size(32), aligned(4), may_alias));  // a load from any address
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));  // AVX-512
typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))

INLINE f8 load8(const float* p) { return *reinterpret_cast<const f8u*>(p); }
INLINE void store8(float* p, f8 v) { *reinterpret_cast<f8u*>(p) = v; }
INLINE f8 all8(float x) { return f8{x, x, x, x, x, x, x, x}; }

// Keep a loaded vector in its register: GCC would rather load it again for every multiply-add that reads it.
INLINE f8 hold8(f8 v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#endif
    return v;
}

// Sixteen lanes: one register where the processor has such, else two. Each lane's arithmetic is the same in both.
#if defined(__AVX512F__)
typedef f16 Sixteen;
typedef float f16u __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int SIXTEENS = 8;  // vectors of sixteen sums that hide a multiply-add's latency
INLINE Sixteen load16(const float* p) { return *reinterpret_cast<const f16u*>(p); }
INLINE void store16(float* p, Sixteen v) { *reinterpret_cast<f16u*>(p) = v; }
INLINE Sixteen all16(float x) { return x - Sixteen{}; }
INLINE Sixteen hold16(Sixteen v) {
    asm("" : "+v"(v));
    return v;
}
#else
struct Sixteen {
    f8 low, high;
    Sixteen& operator+=(const Sixteen& other) { return low += other.low, high += other.high, *this; }
    friend Sixteen operator*(float x, const Sixteen& v) { return {x * v.low, x * v.high}; }
};
constexpr int SIXTEENS = 6;
INLINE Sixteen load16(const float* p) { return {load8(p), load8(p + 8)}; }
INLINE void store16(float* p, const Sixteen& v) { store8(p, v.low), store8(p + 8, v.high); }
INLINE Sixteen hold16(Sixteen v) { return {hold8(v.low), hold8(v.high)}; }
#endif

// `8 V` lanes.
template <int V> struct Lanes;
template <> struct Lanes<1> {
    typedef f8 type;
    static INLINE_MEMBER type load(const float* p) { return load8(p); }
    static INLINE_MEMBER void store(float* p, type v) { store8(p, v); }
    static INLINE_MEMBER type hold(type v) { return hold8(v); }
};
template <> struct Lanes<2> {
    typedef Sixteen type;
    static INLINE_MEMBER type load(const float* p) { return load16(p); }
    static INLINE_MEMBER void store(float* p, type v) { store16(p, v); }
    static INLINE_MEMBER type hold(type v) { return hold16(v); }
};

// The first `count` lanes from memory, the others zero; and the store of the first `count` lanes.
INLINE f8 load_part(const float* p, int count) {
    f8 v = {};
    std::memcpy(&v, p, sizeof(float) * count);
    return v;
}
INLINE void store_part(float* p, f8 v, int count) { std::memcpy(p, &v, sizeof(float) * count); }

INLINE f8 min8(f8 v, float limit) { f8 m = all8(limit); return v > m ? m : v; }  // NaN stays
INLINE f8 max8(f8 v, float limit) { f8 m = all8(limit); return v < m ? m : v; }
INLINE f8 larger8(f8 a, f8 b) { return b > a ? b : a; }

INLINE float sum8(f8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
INLINE f4 halves(f8 v) {
    return f4{v[0], v[1], v[2], v[3]} + f4{v[4], v[5], v[6], v[7]};
}

// (sum8 a, sum8 b, sum8 c, sum8 d) in sum8's order.
INLINE f4 sum8x4(f8 a, f8 b, f8 c, f8 d) {
    const f4 p = halves(a), q = halves(b), r = halves(c), s = halves(d);
    const f4 pq0 = __builtin_shuffle(p, q, (i4){0, 4, 1, 5}), pq1 = __builtin_shuffle(p, q, (i4){2, 6, 3, 7});
    const f4 rs0 = __builtin_shuffle(r, s, (i4){0, 4, 1, 5}), rs1 = __builtin_shuffle(r, s, (i4){2, 6, 3, 7});
    const f4 x = pq0 + pq1, y = rs0 + rs1;  // p0+p2, q0+q2, p1+p3, q1+q3
    return __builtin_shuffle(x, y, (i4){0, 1, 4, 5}) + __builtin_shuffle(x, y, (i4){2, 3, 6, 7});
}
INLINE f8 fold8(f8 v) { return v; }
INLINE f8 fold8(f16 v) {
    f8 parts[2];
    std::memcpy(parts, &v, sizeof parts);
    return parts[0] + parts[1];
}
INLINE float top8(f8 v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// Power of two with an integer exponent in [-126, 127].
INLINE f8 power8(i8 n) { return (f8)((n + 127) << 23); }

// exp to about 1 ulp (Cephes' polynomial), denormals and infinity included.
INLINE f8 exp8(f8 x) {
    f8 t = max8(min8(x, 89.0f), -104.0f);
    f8 whole = t * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    i8 n = (i8)whole - (i8)all8(12582912.0f);
    whole -= 12582912.0f;
    f8 r = t - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    f8 p = all8(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    i8 half = n >> 1;
    return p * power8(half) * power8(n - half);
}

INLINE f8 sigmoid8(f8 x) { return 1.0f / (1.0f + exp8(-x)); }

// log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)) by its series.
INLINE f8 log1p8(f8 u) {
    f8 s = u / (2.0f + u), q = s * s;
    f8 p = all8(1.0f / 17);
    p = p * q + 1.0f / 15;
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * (s + s * q * p);
}

// log(1 + exp(x)).
INLINE f8 softplus8(f8 x) {
    f8 away = x > 0.0f ? -x : x;  // -|x|; NaN stays
    return log1p8(exp8(away)) + (x > 0.0f ? x : all8(0.0f));
}

INLINE float dot(const float* a, const float* b, int64_t n) {
    f8 s0 = {}, s1 = {}, s2 = {}, s3 = {};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 += load8(a + i) * load8(b + i);
        s1 += load8(a + i + 8) * load8(b + i + 8);
        s2 += load8(a + i + 16) * load8(b + i + 16);
        s3 += load8(a + i + 24) * load8(b + i + 24);
    }
    for (; i + 8 <= n; i += 8) s0 += load8(a + i) * load8(b + i);
    float sum = sum8((s0 + s1) + (s2 + s3));
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// out[r] = x . w_r for up to four consecutive rows of n numbers, each read once.
INLINE void row_dots(const float* x, const float* w, int rows, int64_t n, float* out) {
    if (rows < 4) {
        for (int r = 0; r < rows; r++) out[r] = dot(x, w + r * n, n);
        return;
    }
    f8 a[4] = {}, b[4] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int r = 0; r < 4; r++) {
            a[r] += load8(x + i) * load8(w + r * n + i);
            b[r] += load8(x + i + 8) * load8(w + r * n + i + 8);
        }
    for (; i + 8 <= n; i += 8)
        for (int r = 0; r < 4; r++) a[r] += load8(x + i) * load8(w + r * n + i);
    for (int r = 0; r < 4; r++) {
        out[r] = sum8(a[r] + b[r]);
        for (int64_t j = i; j < n; j++) out[r] += x[j] * w[r * n + j];
    }
}

constexpr int64_t STEP = 4;  // rows of weights that are read side by side

// row_dots, asking for the rows that come next: the processor does not follow streams this short by itself.
INLINE void stream_dots(const float* x, const float* w, int rows, int64_t n, float* out) {
    for (int64_t i = 0; i < rows * n; i += 16) __builtin_prefetch(w + STEP * n + i);
    row_dots(x, w, rows, n, out);
}
