// 16-bit floating-point numbers on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fairy/kernels.h"

namespace numbers {

inline double bf16_to_double(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline double fp16_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline double to_double(int dtype, uint16_t bits) {
  static const auto* const halves = [] {
    auto* all = new std::vector<double>(65536);  // a table, because the loops of the tests do little else
    for (size_t i = 0; i < all->size(); ++i) (*all)[i] = fp16_to_double(static_cast<uint16_t>(i));
    return all;
  }();
  return dtype == FAIRY_BFLOAT16 ? bf16_to_double(bits) : (*halves)[bits];
}

// Rounded to nearest, ties to even; |value| must be within the type's finite range.
inline uint16_t from_double(int dtype, double value) {
  if (std::isnan(value)) return 0x7FFF;
  const bool brain = dtype == FAIRY_BFLOAT16;
  const int bits = brain ? 7 : 10, lowest = brain ? -126 : -14;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (value == 0.0) return sign;
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, lowest);
  // The significand with its hidden bit; a carry runs into the exponent by itself.
  const auto scaled = static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), bits - exponent)));
  return static_cast<uint16_t>(sign | (scaled + (static_cast<uint32_t>(exponent - lowest) << bits)));
}

// The largest relative error of rounding to the type.
inline double unit_roundoff(int dtype) { return dtype == FAIRY_BFLOAT16 ? 0x1p-9 : 0x1p-11; }

}  // namespace numbers
