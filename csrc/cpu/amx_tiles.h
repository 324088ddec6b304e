// A tile of a matrix product in the matrix registers of AMX, as exact as float32. Included once
// (see instruction_sets.cpp); products.h says what it needs of a tile.
//
// A float is the sum of three bfloat16, x = x0 + x1 + x2, each 2^8 times smaller. Of the nine
// products of two such sums the six above 2^-24 are formed, each exactly, and summed in float32.

constexpr int64_t kHigh = 32, kWide = 32;  // two by two matrix registers of sums
constexpr int64_t kStep = 32;              // numbers of a sum that one instruction takes in
constexpr int64_t kSide = 16;              // lines of a matrix register
constexpr int64_t kParts = 3;
constexpr int64_t kDeep = 768;       // numbers that a sum takes in before it is written
constexpr int64_t kBlockRows = 192;  // packed kDeep deep, less than half the second cache
constexpr int64_t kGroupColumns = 1024;

// Floats that hold some lines, packed: 6 bytes a number.
constexpr int64_t packed(int64_t lines, int64_t depth) {
  return lines * ((depth + kStep - 1) / kStep * kStep) * kParts / 2;
}

// Of the right factor's next lines, what one step of one tile brings nearer: as many tiles as a
// block is high bring all.
constexpr int64_t kAhead = packed(kWide, kStep) / (kBlockRows / kHigh);

SF_INLINE void begin_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("" ::"r"(&shape) : "memory");  // the instruction says that it reads less than that
  _tile_loadconfig(&shape);
}
SF_INLINE void end_tiles() { _tile_release(); }

// A matrix register holds 1 KiB. Packed, a step follows another; in it part follows part; of a
// part, lines 0-15 stand before lines 16-31.
constexpr int64_t kRegister = 512, kPart = 2 * kRegister, kBytes = 64;

#define SF_LEFT(part)                         \
  _tile_loadd(4, a + (part) * kPart, kBytes); \
  _tile_loadd(5, a + (part) * kPart + kRegister, kBytes)
#define SF_RIGHT(part)                        \
  _tile_loadd(6, b + (part) * kPart, kBytes); \
  _tile_loadd(7, b + (part) * kPart + kRegister, kBytes)
#define SF_ADD_PRODUCTS()  \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)

template <int Lines, int Level>
SF_INLINE void prefetch(const void *from) {
#pragma GCC unroll 32
  for (int i = 0; i < Lines; ++i)
    __builtin_prefetch(static_cast<const char *>(from) + 64 * i, 0, Level);
}

// out (kHigh, kWide) = or += left (depth, kHigh)^T right (depth, kWide), both packed. What will be
// read next comes nearer meanwhile: the next step to the first cache, `ahead` to the second.
SF_INLINE void tile(const float *left, const float *right, int64_t depth, float *out,
                    int64_t stride, bool add, const float *ahead) {
  const uint16_t *a = reinterpret_cast<const uint16_t *>(left);
  const uint16_t *b = reinterpret_cast<const uint16_t *>(right);
  constexpr int64_t kNext = kParts * kPart;
  asm volatile("" ::: "memory");  // the loads below do not say that they read memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kStep, a += kNext, b += kNext, ahead += kAhead) {
    // In an order in which neighbours share a factor, which is then loaded once.
    SF_LEFT(2);
    SF_RIGHT(0);
    SF_ADD_PRODUCTS();
    prefetch<4 * kAhead / 64, 2>(ahead);
    SF_LEFT(1);
    SF_ADD_PRODUCTS();
    prefetch<32, 3>(a + kNext + 2 * kPart);
    SF_RIGHT(1);
    SF_ADD_PRODUCTS();
    prefetch<32, 3>(b + kNext);
    SF_LEFT(0);
    SF_ADD_PRODUCTS();
    prefetch<32, 3>(a + kNext + kPart);
    SF_RIGHT(0);
    SF_ADD_PRODUCTS();
    prefetch<32, 3>(b + kNext + kPart);
    SF_RIGHT(2);
    SF_ADD_PRODUCTS();
    prefetch<32, 3>(a + kNext);
    prefetch<32, 3>(b + kNext + 2 * kPart);
  }
  // Sums are begun anew in each tile and added here: one long sum would round at its full size.
  alignas(64) float sums[kHigh * kWide];
  float *const to = add ? sums : out;
  const int64_t line = add ? kWide : stride;
  _tile_stored(0, to, 4 * line);
  _tile_stored(1, to + kSide, 4 * line);
  _tile_stored(2, to + kSide * line, 4 * line);
  _tile_stored(3, to + kSide * line + kSide, 4 * line);
  asm volatile("" ::: "memory");
  if (!add) return;
  for (int r = 0; r < kHigh; ++r)
    for (int c = 0; c < kWide; ++c) out[r * stride + c] += sums[r * kWide + c];
}

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Pairs __attribute__((vector_size(64), aligned(4)));  // of bfloat16
typedef uint16_t Halves __attribute__((vector_size(64)));

// The next part of 16 numbers, in the upper halves; the numbers lose it.
SF_INLINE Pairs next_part(Floats &x) {
  const Pairs part = (reinterpret_cast<Pairs>(x) + 0x8000u) & 0xffff0000u;
  x -= reinterpret_cast<Floats>(part);
  return part;
}

// A square of 16 by 16 pairs, turned: blocks off the diagonal change places, from large to small.
SF_INLINE void turn(Pairs *row) {
#pragma GCC unroll 4
  for (uint32_t size = 8; size > 0; size /= 2) {
    Pairs upper, lower;
    for (uint32_t i = 0; i < 16; ++i) {
      upper[i] = i & size ? 16 + i - size : i;
      lower[i] = i & size ? 16 + i : i + size;
    }
#pragma GCC unroll 16
    for (uint32_t i = 0; i < 16; ++i) {
      if (i & size) continue;
      const Pairs above = row[i], below = row[i + size];
      row[i] = __builtin_shuffle(above, below, upper);
      row[i + size] = __builtin_shuffle(above, below, lower);
    }
  }
}

// 16 lines of 32 numbers -> the register of each part, one row a line or, Turned, one a pair.
template <bool Turned>
void pack_register(const float *from, int64_t line, int64_t along, uint16_t *out) {
  const Halves upper = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  Pairs row[kParts][16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    // Along a line, the next 16 numbers; across lines, their next numbers.
    const float *at = along == 1 ? from + i * line : from + 2 * i * along;
    Floats first = *reinterpret_cast<const Floats *>(at);
    Floats second = *reinterpret_cast<const Floats *>(at + (along == 1 ? 16 : along));
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      const Pairs low = next_part(first), high = next_part(second);
      row[part][i] =
          along == 1 ? reinterpret_cast<Pairs>(__builtin_shuffle(
                           reinterpret_cast<Halves>(low), reinterpret_cast<Halves>(high), upper))
                     : low >> 16 | high;
    }
  }
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    if (Turned == (along == 1)) turn(row[part]);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      *reinterpret_cast<Pairs *>(out + part * kPart + i * 32) = row[part][i];
  }
}

// Lines (count <= 32) of `depth` numbers -> out; what does not exist is zero.
template <bool Turned>
SF_INLINE void pack_parts(const float *from, int64_t line, int64_t along, int64_t count,
                          int64_t depth, float *out) {
  uint16_t *to = reinterpret_cast<uint16_t *>(out);
  for (int64_t k = 0; k < depth; k += kStep, to += kParts * kPart) {
    for (int64_t i = 0; i < 2 * kSide; i += kSide) {
      const float *at = from + i * line + k * along;
      if (count >= i + kSide && depth >= k + kStep && (along == 1 || line == 1)) {
        pack_register<Turned>(at, line, along, to + i * 32);
        continue;
      }
      float whole[kSide * kStep] = {};
      const int64_t lines = smaller(kSide, count - i), deep = smaller(kStep, depth - k);
      for (int64_t r = 0; r < lines; ++r)
        for (int64_t c = 0; c < deep; ++c) whole[r * kStep + c] = at[r * line + c * along];
      pack_register<Turned>(whole, kStep, 1, to + i * 32);
    }
  }
}

void pack_left(const float *from, int64_t line, int64_t along, int64_t count, int64_t depth,
               float *out) {
  pack_parts<false>(from, line, along, count, depth, out);
}

void pack_right(const float *from, int64_t line, int64_t along, int64_t count, int64_t depth,
                float *out) {
  pack_parts<true>(from, line, along, count, depth, out);
}
