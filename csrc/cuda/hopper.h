// What the kernels ask of a Hopper multiprocessor, one function for each instruction.
//
// Kernels include this file as <hopper.h>: tests/emulated has another of the same name, with which
// g++ compiles the very same kernels for a machine without a GPU. Addresses are 32-bit addresses of
// shared memory. PTX ISA 8.0 is the reference for all of them.
#ifndef SIMCSE_FAST_CUDA_HOPPER_H
#define SIMCSE_FAST_CUDA_HOPPER_H

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace hopper {

using TensorMap = CUtensorMap;

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

__device__ __forceinline__ int rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ __forceinline__ int cluster() {
  uint32_t index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return static_cast<int>(index);
}

__device__ __forceinline__ int clusters() {
  uint32_t count;
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
  return static_cast<int>(count);
}

// The block's dynamic shared memory from the first multiple of 1024 on, where swizzles begin.
__device__ __forceinline__ uint32_t shared_memory() {
  extern __shared__ uint8_t bytes[];
  return (static_cast<uint32_t>(__cvta_generic_to_shared(bytes)) + 1023) & ~1023u;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// --- registers move between warpgroups

template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- barriers in shared memory

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// After the barriers of a block are made: the other block and the copy engine see them.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// At the barrier of the same address in another block of the cluster.
__device__ __forceinline__ void arrive_at(uint32_t barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// One arrival, of the one who knows how many bytes the copy engine will bring in this phase.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Until the phase of this parity is complete. A new barrier is in a phase of parity 0.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Numbered barriers of some of a block's threads, whole warps.
__device__ __forceinline__ void sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// --- the copy engine: boxes of matrices, swizzled in shared memory

__device__ __forceinline__ void prefetch(const TensorMap &map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void load(uint32_t to, const TensorMap &from, int column, int row,
                                     uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Into the same place of all blocks in a mask, with the bytes counted at each one's barrier.
__device__ __forceinline__ void load_for(uint16_t blocks, uint32_t to, const TensorMap &from,
                                         int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

__device__ __forceinline__ void store(const TensorMap &to, int column, int row, uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to),
      "r"(column), "r"(row), "r"(from)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until all but kPending of this thread's stores have read their shared memory.
template <int kPending>
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// --- shared memory, as threads see it

__device__ __forceinline__ void put(uint32_t at, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
}

__device__ __forceinline__ float get(uint32_t at) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
  return x;
}

struct Two {
  float low, high;
};
__device__ __forceinline__ Two get_two(uint32_t at) {
  Two x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.low), "=f"(x.high) : "r"(at) : "memory");
  return x;
}

struct TwoIds {
  int64_t low, high;
};
__device__ __forceinline__ TwoIds get_ids(uint32_t at) {
  TwoIds x;
  asm volatile("ld.shared.v2.b64 {%0, %1}, [%2];" : "=l"(x.low), "=l"(x.high) : "r"(at) : "memory");
  return x;
}

// What this thread wrote is there for the copy engine.
__device__ __forceinline__ void publish_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- arithmetic

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t two_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ float from_lane(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

__device__ __forceinline__ bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }

// --- products of a warpgroup: 64 rows with 256

constexpr int kSums = 128;  // of a thread

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

#define SF_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SF_16(d, i) SF_4(d, i), SF_4(d, i + 4), SF_4(d, i + 8), SF_4(d, i + 12)
#define SF_64(d, i) SF_16(d, i), SF_16(d, i + 16), SF_16(d, i + 32), SF_16(d, i + 48)

// Until all but kPending of the committed groups are done. The sums pass through, so that the
// compiler neither reads them earlier nor moves them.
template <int kPending>
__device__ __forceinline__ void wait_products(float (&d)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned %128;"
               : SF_64(d, 0), SF_64(d, 64)
               : "n"(kPending)
               : "memory");
}

// A matrix whose rows of 64 or 128 bytes are swizzled: where it begins, the bytes of eight rows
// (the other stride is not used), the swizzle.
template <int kRowBytes>
__device__ __forceinline__ uint64_t matrix(uint32_t address) {
  static_assert(kRowBytes == 64 || kRowBytes == 128);
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 |
         uint64_t{8 * kRowBytes / 16} << 32 | uint64_t{kRowBytes == 64 ? 2 : 1} << 62;
}

// d += or = A B^T over 16 columns of A (64 rows) and of B (256 rows), of which these are the first.
// A thread's sums: see fragment_row and fragment_column in tile_maps.h.
template <int kRowBytes>
__device__ __forceinline__ void multiply(float (&d)[kSums], uint32_t a, uint32_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16\n"
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,\n"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,\n"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,\n"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,\n"
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,\n"
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,\n"
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110,\n"
      "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124,\n"
      "%125, %126, %127}, %128, %129, add, 1, 1, 0, 0;\n"
      "}"
      : SF_64(d, 0), SF_64(d, 64)
      : "l"(matrix<kRowBytes>(a)), "l"(matrix<kRowBytes>(b)), "r"(static_cast<int>(add)));
}

#undef SF_4
#undef SF_16
#undef SF_64

}  // namespace hopper

#endif
