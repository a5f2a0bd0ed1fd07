// The elementwise work of the two blocks of `late`, one pass over memory each. plain.py has the same functions in
// PyTorch: they are the specification, and the tests compare the two. Rows are tokens; threads share them.
#include <vector>
#include "rows.h"

// Calls body(nullptr of type T*) with T = float or bf16, by the kind of an array.
template <class Body>
static void floats(int64_t kind, Body body) {
  if (kind == FLOAT32) body((float*)nullptr);
  else body((bf16*)nullptr);
}

// body(row, scratch of `width` floats) for each row; the threads are woken where that is worth it.
template <class Body>
static void each_row(int64_t rows, int64_t width, bool wake, Body body) {
#pragma omp parallel if (wake)
  {
    std::vector<float> scratch(width);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i++) body(i, scratch.data());
  }
}
template <class Body>
static void each_row(int64_t rows, int64_t width, Body body) {
  each_row(rows, width, rows * width > 32768, body);
}

template <class T>
static void load_row(const T* from, float* to, int64_t width) {
  for (int64_t j = 0; j < width; j++) to[j] = load(from + j);
}

// A row becomes softmax(row * scale + bias); a row whose keys are all masked by -inf becomes zeros, as in SDPA.
static void softmax_row(float* x, int64_t length, float scale, const float* bias) {
  float top = -std::numeric_limits<float>::infinity(), total = 0.f;
  if (bias)
    for (int64_t j = 0; j < length; j++) x[j] = x[j] * scale + bias[j];
  else
    for (int64_t j = 0; j < length; j++) x[j] *= scale;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < length; j++) top = x[j] > top ? x[j] : top;
  if (top == -std::numeric_limits<float>::infinity()) top = 0.f;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < length; j++) {
    x[j] = exp_(x[j] - top);
    total += x[j];
  }
  float inverse = total == 0.f ? 0.f : 1.f / total;
  for (int64_t j = 0; j < length; j++) x[j] *= inverse;
}

// Rows become zero mean and unit deviation in place; returns 1 / deviation.
static float normalise(float* x, int64_t width, float eps) {
  float mean = 0.f, variance = 0.f;
#pragma omp simd reduction(+ : mean)
  for (int64_t j = 0; j < width; j++) mean += x[j];
  mean /= width;
#pragma omp simd reduction(+ : variance)
  for (int64_t j = 0; j < width; j++) {
    x[j] -= mean;
    variance += x[j] * x[j];
  }
  float rstd = 1.f / std::sqrt(variance / width + eps);
  for (int64_t j = 0; j < width; j++) x[j] *= rstd;
  return rstd;
}

extern "C" {

// Stores x (rows, width) in another kind.
void pack(const void* x, int64_t x_kind, int64_t rows, int64_t width, void* data, void* scales, int64_t kind) {
  Stored stored(data, scales, kind, width);
  floats(x_kind, [&](auto* t) {
    each_row(rows, width, [&](int64_t i, float* row) {
      load_row((decltype(t))x + i * width, row, width);
      stored.write(i, row);
    });
  });
}

// out[n] = (stored[index[n]] * gamma + beta) * weight[n]; index, gamma with beta, and weight may be null.
void unpack(const void* data, const void* scales, int64_t kind, int64_t width, const int64_t* index, int64_t count,
            const float* gamma, const float* beta, const float* weight, void* out, int64_t out_kind) {
  Stored stored((void*)data, (void*)scales, kind, width);
  floats(out_kind, [&](auto* t) {
    each_row(count, width, [&](int64_t n, float* row) {
      stored.read(index ? index[n] : n, row);
      float w = weight ? weight[n] : 1.f;
      auto* to = (decltype(t))out + n * width;
      const float *gain = gamma, *shift = beta;
      if (gain)
        for (int64_t j = 0; j < width; j++) store(to + j, (row[j] * gain[j] + shift[j]) * w);
      else
        for (int64_t j = 0; j < width; j++) store(to + j, row[j] * w);
    });
  });
}

// y = LayerNorm(dropout(h) + residual); stores the normalised rows (before gamma and beta) and 1 / deviation.
void add_norm(const void* h, int64_t h_kind, const void* residual, int64_t stream_kind, int64_t rows, int64_t width,
              const float* gamma, const float* beta, double eps, double p, int64_t seed, void* y, void* data,
              void* scales, int64_t kind, float* rstd) {
  Stored stored(data, scales, kind, width);
  Noise noise(p, seed);
  floats(h_kind, [&](auto* t) {
    floats(stream_kind, [&](auto* r) {
      each_row(rows, width, [&](int64_t i, float* row) {
        auto* from = (decltype(t))h + i * width;
        auto* skip = (decltype(r))residual + i * width;
        auto* to = (decltype(r))y + i * width;
        const float *gain = gamma, *shift = beta;
        load_row(from, row, width);
        noise.apply(row, uint32_t(i * width), width);
        for (int64_t j = 0; j < width; j++) row[j] += load(skip + j);
        rstd[i] = normalise(row, width, float(eps));
        for (int64_t j = 0; j < width; j++) store(to + j, row[j] * gain[j] + shift[j]);
        stored.write(i, row);
      });
    });
  });
}

// The gradient of add_norm: to the residual, to h (through the same dropout mask), the norm of each row of the latter;
// and into sums (threads, 2, width), zeroed by the caller, the gradients of gamma and beta.
void add_norm_grad(const void* dy, int64_t stream_kind, const void* data, const void* scales, int64_t kind,
                   int64_t rows, int64_t width, const float* rstd, const float* gamma, double p, int64_t seed,
                   void* d_residual, void* d_h, int64_t h_kind, float* norms, float* sums, int64_t threads) {
  Stored stored((void*)data, (void*)scales, kind, width);
  Noise noise(p, seed);
  int64_t share = (rows + threads - 1) / threads;
  auto one_row = [&](auto* t, auto* r, int64_t i, float* hat, float* to_gamma, float* to_beta) {
    auto* from = (decltype(r))dy + i * width;
    auto* to_residual = (decltype(r))d_residual + i * width;
    auto* to_h = (decltype(t))d_h + i * width;
    float mean = 0.f, along = 0.f, square = 0.f, *grad = hat + width;
    const float *gain = gamma, inverse = rstd[i];
    stored.read(i, hat);
#pragma omp simd reduction(+ : mean, along)
    for (int64_t j = 0; j < width; j++) {
      float g = load(from + j), scaled = g * gain[j];
      to_gamma[j] += g * hat[j];
      to_beta[j] += g;
      grad[j] = scaled;
      mean += scaled;
      along += scaled * hat[j];
    }
    mean /= width;
    along /= width;
    for (int64_t j = 0; j < width; j++) {
      grad[j] = inverse * (grad[j] - mean - hat[j] * along);
      store(to_residual + j, grad[j]);
    }
    noise.apply(grad, uint32_t(i * width), width);
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < width; j++) {
      square += grad[j] * grad[j];
      store(to_h + j, grad[j]);
    }
    norms[i] = std::sqrt(square);
  };
  floats(h_kind, [&](auto* t) {
    floats(stream_kind, [&](auto* r) {
      each_row(threads, 2 * width, rows * width > 32768, [&](int64_t thread, float* scratch) {
        float* to_gamma = sums + thread * 2 * width;
        for (int64_t i = thread * share; i < rows && i < (thread + 1) * share; i++)
          one_row(t, r, i, scratch, to_gamma, to_gamma + width);
      });
    });
  });
}

// h becomes gelu(h) in place; what h was is stored.
void gelu(void* h, int64_t h_kind, int64_t rows, int64_t width, void* data, void* scales, int64_t kind) {
  Stored stored(data, scales, kind, width);
  floats(h_kind, [&](auto* t) {
    each_row(rows, width, [&](int64_t i, float* row) {
      auto* to = (decltype(t))h + i * width;
      load_row(to, row, width);
      stored.write(i, row);
      for (int64_t j = 0; j < width; j++) store(to + j, gelu_value(row[j]));
    });
  });
}

// grad[n] *= gelu'(stored[index[n]]) in place.
void gelu_grad(void* grad, int64_t grad_kind, const void* data, const void* scales, int64_t kind, int64_t width,
               const int64_t* index, int64_t count) {
  Stored stored((void*)data, (void*)scales, kind, width);
  floats(grad_kind, [&](auto* t) {
    each_row(count, width, [&](int64_t n, float* row) {
      auto* to = (decltype(t))grad + n * width;
      stored.read(index ? index[n] : n, row);
      for (int64_t j = 0; j < width; j++) store(to + j, load(to + j) * gelu_slope(row[j]));
    });
  });
}

// out[n] = gelu(stored[index[n]]) * weight[n]
void gelu_rows(const void* data, const void* scales, int64_t kind, int64_t width, const int64_t* index, int64_t count,
               const float* weight, void* out, int64_t out_kind) {
  Stored stored((void*)data, (void*)scales, kind, width);
  floats(out_kind, [&](auto* t) {
    each_row(count, width, [&](int64_t n, float* row) {
      auto* to = (decltype(t))out + n * width;
      float w = weight ? weight[n] : 1.f;
      stored.read(index ? index[n] : n, row);
      for (int64_t j = 0; j < width; j++) store(to + j, gelu_value(row[j]) * w);
    });
  });
}

// scores (rows, length) of one sample become dropout(softmax(scores * scale + bias)) in place; bias (length) or null.
void softmax(void* scores, int64_t kind, int64_t rows, int64_t length, double scale, const float* bias, double p,
             int64_t seed) {
  Noise noise(p, seed);
  floats(kind, [&](auto* t) {
    each_row(rows, length, [&](int64_t i, float* row) {
      auto* to = (decltype(t))scores + i * length;
      load_row(to, row, length);
      softmax_row(row, length, float(scale), bias);
      noise.apply(row, uint32_t(i * length), length);
      for (int64_t j = 0; j < length; j++) store(to + j, row[j]);
    });
  });
}

// As softmax for `scores`, and the gradient to its output becomes the gradient to the unscaled scores, in place.
void softmax_grad(void* scores, void* grad, int64_t kind, int64_t rows, int64_t length, double scale,
                  const float* bias, double p, int64_t seed) {
  Noise noise(p, seed);
  floats(kind, [&](auto* t) {
    each_row(rows, 3 * length, [&](int64_t i, float* probs) {
      auto *to = (decltype(t))scores + i * length, *to_grad = (decltype(t))grad + i * length;
      float *dropped = probs + length, *inner = dropped + length, along = 0.f, factor = float(scale);
      load_row(to, probs, length);
      load_row(to_grad, inner, length);
      softmax_row(probs, length, factor, bias);
      std::memcpy(dropped, probs, length * sizeof(float));
      noise.apply(dropped, uint32_t(i * length), length);
      // sum_j mask_j grad_j probs_j, as the mask is in `dropped` already
#pragma omp simd reduction(+ : along)
      for (int64_t j = 0; j < length; j++) along += inner[j] * dropped[j];
      for (int64_t j = 0; j < length; j++) {
        store(to + j, dropped[j]);
        store(to_grad + j, (inner[j] * dropped[j] - along * probs[j]) * factor);
      }
    });
  });
}

}  // extern "C"
