// Copies of what is not read soon, past the caches.

#include "simcse_fast.h"

#include <algorithm>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

constexpr int64_t kLine = 64;           // bytes
constexpr int64_t kParallel = 1 << 18;  // bytes below which waking a thread costs more

void copy_past_caches(const char *from, int64_t bytes, char *to) {
  int64_t done = 0;
#if defined(__SSE2__)
  // Whole lines are written without being read first, and leave what is cached where it is.
  for (; done + kLine <= bytes; done += kLine) {
    const auto *line = reinterpret_cast<const __m128i *>(from + done);
    auto *out = reinterpret_cast<__m128i *>(to + done);
    const __m128i parts[] = {_mm_loadu_si128(line), _mm_loadu_si128(line + 1),
                             _mm_loadu_si128(line + 2), _mm_loadu_si128(line + 3)};
    for (int i = 0; i < 4; ++i) _mm_stream_si128(out + i, parts[i]);
  }
  _mm_sfence();
#endif
  std::memcpy(to + done, from + done, bytes - done);
}

}  // namespace

int32_t sf_copy_past_caches(const void *from, int64_t bytes, void *to, int32_t threads) {
  if (!from || !to || bytes < 0 || threads < 1 || reinterpret_cast<uintptr_t>(to) % kLine) {
    return SF_BAD_ARGUMENT;
  }
  const char *source = static_cast<const char *>(from);
  char *out = static_cast<char *>(to);
  const int64_t lines = (bytes + kLine - 1) / kLine;
  const int64_t share = (lines + threads - 1) / threads * kLine;
#pragma omp parallel for schedule(static) num_threads(threads) if (bytes > kParallel)
  for (int32_t t = 0; t < threads; ++t) {
    const int64_t begin = std::min(t * share, bytes), end = std::min(begin + share, bytes);
    copy_past_caches(source + begin, end - begin, out + begin);
  }
  return SF_OK;
}
