// exp and log as loops that compilers turn into vector code: within 1.5 units in the last place of float.
#pragma once
#include "number.h"

namespace anychip {

// Cephes' polynomial after a Cody-Waite reduction by ln 2.
inline float fast_exp(float x) {
  const float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  const float n = (clamped * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  const int32_t e = int32_t(n), half = e >> 1;
  const float scaled = y * as_bits<float>((half + 127) << 23) * as_bits<float>((e - half + 127) << 23);
  const float top = x > 88.7228390f ? std::numeric_limits<float>::infinity() : scaled;
  const float low = x < -103.972081f ? 0.0f : top;
  return x != x ? x : low;
}

inline float fast_log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const int32_t u = as_bits<int32_t>(scaled);
  const int32_t k = (u - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const float m = as_bits<float>(u - (k << 23)) - 1.0f;
  const float e = float(k) - (tiny ? 23.0f : 0.0f);
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const float z = m * m;
  const float y = m * z * p + e * -2.12194440e-4f - 0.5f * z;
  float result = m + y + e * 0.693359375f;
  result = x == std::numeric_limits<float>::infinity() ? x : result;
  result = x == 0.0f ? -std::numeric_limits<float>::infinity() : result;
  return x < 0.0f || x != x ? std::numeric_limits<float>::quiet_NaN() : result;
}

}  // namespace anychip
