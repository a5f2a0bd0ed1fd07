// One row of an activation: how it is read, written, packed into 8 bits, and how its dropout mask is drawn.
// No dependency on torch: plain pointers, so that the whole builds in seconds with any C++17 compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// The storage kinds, by the same numbers as `KINDS` in compiled.py.
enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, UINT8 = 3 };

// Features that share one scale: a channel of outliers spoils its own group alone.
inline int64_t group_of(Kind kind) { return kind == INT8 ? 32 : 64; }

using bf16 = uint16_t;

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) {
  uint32_t bits = uint32_t(*p) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(bf16* p, float value) {  // round to nearest even; a NaN stays a NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *p = bf16(value != value ? 0x7fc0u : rounded);
}

// exp as in Cephes' expf (2 ulp); exp(-inf) is 0 and exp(NaN) is NaN. Written out so that every compiler vectorises it.
inline float exp_(float x) {
  float y = x > 88.f ? 88.f : x;
  y = y < -87.f ? -87.f : y;
  float n = rintf(y * 1.44269504f);
  float r = y - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.f ? 0.f : p * power;
}

// The normal distribution function, and exp(-x^2 / 2); erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline float normal_cdf(float x, float& density) {
  float z = std::fabs(x) * 0.70710678f;
  float t = 1.f / (1.f + 0.3275911f * z);
  density = exp_(-z * z);
  float poly = (((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f;
  return 0.5f * (1.f + std::copysign(1.f - poly * t * density, x));
}
inline float gelu_value(float x) {
  float density;
  return x * normal_cdf(x, density);
}
inline float gelu_slope(float x) {
  float density, cdf = normal_cdf(x, density);
  return cdf + x * density * 0.39894228f;
}

// A dropout mask that is computed, never stored: element i of a site is kept iff hash(seed, i) >= p * 2^32.
// The hash is Wellons' "lowbias32" without its last shift, of (i + first half of the seed) xor (second half): with a
// sum alone, any two seeds would give one stream, shifted.
struct Noise {
  uint32_t first, second, threshold;
  float scale;
  Noise(double p, int64_t seed)
      : first(uint32_t(uint64_t(seed))), second(uint32_t(uint64_t(seed) >> 32)),
        threshold(uint32_t(p * 4294967296.0)), scale(float(1.0 / (1.0 - p))) {}
  // row[j] becomes 0 where element offset + j is dropped, and row[j] / (1 - p) where it is kept.
  void apply(float* row, uint32_t offset, int64_t width) const {
    const uint32_t a = first + offset, b = second, least = threshold;
    const float kept = scale;
    if (!least) return;
    for (int64_t j = 0; j < width; j++) {
      uint32_t x = (uint32_t(j) + a) ^ b;
      x ^= x >> 16;
      x *= 0x7feb352du;
      x ^= x >> 15;
      x *= 0x846ca68bu;
      row[j] *= x >= least ? kept : 0.f;
    }
  }
};

// A stored activation of (rows, width): plain numbers, or 8-bit codes with bf16 scales per group.
//   INT8   symmetric,  code * scale                 scales (rows, groups)
//   UINT8  asymmetric, code * step + low, low >= -4: below it GELU and its slope vanish.  scales (rows, groups, 2)
struct Stored {
  void* data;
  bf16* scales;
  Kind kind;
  int64_t width, group, groups;
  Stored(void* data, void* scales, int64_t kind, int64_t width)
      : data(data), scales((bf16*)scales), kind(Kind(kind)), width(width), group(group_of(Kind(kind))),
        groups((width + group - 1) / group) {}

  void read(int64_t row, float* out) const {
    if (kind == FLOAT32) std::memcpy(out, (float*)data + row * width, width * sizeof(float));
    if (kind == BFLOAT16)
      for (int64_t j = 0; j < width; j++) out[j] = load((bf16*)data + row * width + j);
    if (kind == INT8) read_groups((int8_t*)data + row * width, row, out);
    if (kind == UINT8) read_groups((uint8_t*)data + row * width, row, out);
  }
  void write(int64_t row, const float* in) const {
    if (kind == FLOAT32) std::memcpy((float*)data + row * width, in, width * sizeof(float));
    if (kind == BFLOAT16)
      for (int64_t j = 0; j < width; j++) store((bf16*)data + row * width + j, in[j]);
    for (int64_t g = 0; kind >= INT8 && g < groups; g++) {
      int64_t start = g * group, count = width - start < group ? width - start : group;
      if (kind == INT8) pack_signed(in + start, (int8_t*)data + row * width + start, scales + row * groups + g, count);
      else pack_unsigned(in + start, (uint8_t*)data + row * width + start, scales + (row * groups + g) * 2, count);
    }
  }

 private:
  template <class Code>
  void read_groups(const Code* codes, int64_t row, float* out) const {
    constexpr bool is_signed = std::numeric_limits<Code>::is_signed;
    for (int64_t g = 0; g < groups; g++) {
      int64_t start = g * group, end = start + group < width ? start + group : width;
      const bf16* s = scales + (row * groups + g) * (is_signed ? 1 : 2);
      float step = load(s), low = is_signed ? 0.f : load(s + !is_signed);
      for (int64_t j = start; j < end; j++) out[j] = float(codes[j]) * step + low;
    }
  }
  static void pack_signed(const float* x, int8_t* codes, bf16* scale, int64_t count) {
    float top = 1e-12f, total = 0.f;
#pragma omp simd reduction(max : top) reduction(+ : total)
    for (int64_t j = 0; j < count; j++) {
      float size = std::fabs(x[j]);
      top = size > top ? size : top;
      total += size;
    }
    // 126, not 127: the scale is rounded to bf16 first and may come out smaller. `total * 0` carries NaN and inf.
    store(scale, top / 126.f + total * 0.f);
    float inverse = 1.f / load(scale);
    for (int64_t j = 0; j < count; j++) codes[j] = int8_t(int32_t(rintf(x[j] * inverse)));
  }
  static void pack_unsigned(const float* x, uint8_t* codes, bf16* scale, int64_t count) {
    float top = -3.9f, low = std::numeric_limits<float>::infinity(), total = 0.f;
#pragma omp simd reduction(max : top) reduction(min : low) reduction(+ : total)
    for (int64_t j = 0; j < count; j++) {
      top = x[j] > top ? x[j] : top;
      low = x[j] < low ? x[j] : low;
      total += std::fabs(x[j]);
    }
    store(scale + 1, low < -4.f ? -4.f : low);
    low = load(scale + 1);
    float range = top - low;
    store(scale, (range > 1e-6f ? range : 1e-6f) / 254.f + total * 0.f);
    float inverse = 1.f / load(scale);
    for (int64_t j = 0; j < count; j++) {
      float code = (x[j] - low) * inverse + 0.5f;
      code = code > 0.f ? code : 0.f;
      codes[j] = uint8_t(int32_t(code < 255.f ? code : 255.f));
    }
  }
};
