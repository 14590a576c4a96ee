// What a Hopper multiprocessor can do, one instruction a function: matrix products of four warps, copies, and clusters of programs.
//
// Tiles of matrix products are 64 columns of 16-bit numbers wide, a row after the other, 128 bytes each; within eight rows the
// pieces of 16 bytes are permuted (`at`), which is what a descriptor calls a swizzle of 128 bytes. ``HALF`` is "bf16" or "f16",
// BFLOAT whether it is the first.

typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// Where a piece of 16 bytes of a tile lies. That of ``piece ^ i`` lies at ``at(tile, row, piece) ^ (i << 4)``.
DEVICE u32 at(u32 tile, u32 row, u32 piece) { return tile + row * 128 + ((piece ^ (row & 7)) << 4); }

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Two numbers in 16 bits each, the first one below.
DEVICE u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn." HALF "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

DEVICE float narrow_to_float(unsigned short x) {
  float y;
#if BFLOAT
  y = __uint_as_float((u32)x << 16);
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
#endif
  return y;
}

DEVICE float low(u32 both) { return narrow_to_float((unsigned short)(both & 0xffff)); }
DEVICE float high(u32 both) { return narrow_to_float((unsigned short)(both >> 16)); }

DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A number of which compilers know nothing, so that they form addresses from it where these are needed and keep none in registers.
DEVICE u32 opaque(u32 x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Of this warp, which compilers are to know that all its threads share.
DEVICE u32 warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0); }

// From global memory, here and not where compilers would rather begin.
DEVICE void fetch(const float* from, float* x) {
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(from)
               : "memory");
}
DEVICE void fetch(const unsigned short* from, uint2& x) {
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from) : "memory");
}

DEVICE float load(u32 a) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(a) : "memory");
  return x;
}

DEVICE void load(u32 a, float& x, float& y) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(a) : "memory");
}

DEVICE void load(u32 a, float& x, float& y, float& z, float& w) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x), "=f"(y), "=f"(z), "=f"(w) : "r"(a) : "memory");
}

DEVICE void load(u32 a, u32& x, u32& y) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(a) : "memory");
}

DEVICE void load(u32 a, u32& x, u32& y, u32& z, u32& w) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

// An address that shared memory has: what is formed from it again need not wait in registers until then.
DEVICE u32 again(u32 a) {
  u32 x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(a) : "memory");
  return x;
}

DEVICE void store(u32 a, float x) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(a), "f"(x) : "memory"); }

DEVICE void store(u32 a, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(a), "f"(x), "f"(y) : "memory");
}

DEVICE void store(u32 a, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(a), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}

DEVICE void store(u32 a, u32 x, u32 y) { asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(a), "r"(x), "r"(y) : "memory"); }

// Four matrices of eight rows of 16 bytes; every thread has a row's address, matrices as products leave them.
DEVICE void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// The same of the transposed matrices.
DEVICE void store_transposed(u32 row, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// What `store_matrices` has stored.
DEVICE void load_matrices(u32 row, u32& a, u32& b, u32& c, u32& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(row)
               : "memory");
}

// All threads of four warps, of the first or of the second.
DEVICE void group_barrier(u32 group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

// A matrix of 16-bit numbers in global memory, as the copy engine knows it: `miras.kernels.cuda.Tiles`.
struct alignas(64) Map {
  u64 words[16];
};

// What the map says is copied at a time, from that row and column on; ``barrier`` counts the bytes.
DEVICE void copy_in(u32 to, const Map& map, u32 row, u32 column, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          to),
      "l"(&map), "r"(0), "r"(row), "r"(column >> 6), "r"(barrier)
      : "memory");
}

// The other way. `close` ends a group of such copies of a thread, `read` waits until all but the last N groups have been read from shared
// memory, `written` until all have arrived.
DEVICE void copy_out(const Map& map, u32 row, u32 column, u32 from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(0),
               "r"(row), "r"(column >> 6), "r"(from)
               : "memory");
}
DEVICE void close() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
DEVICE void read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
DEVICE void written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

DEVICE void ask(const Map& map, u32 row, u32 column) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(0), "r"(row),
               "r"(column >> 6));
}
DEVICE void ask(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }  // 128 bytes that will be read
DEVICE void add_to(float* sum, float x, float y, float z, float w) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sum), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}

// What this thread has stored is seen by products and copies that begin after the next barrier.
DEVICE void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all programs of the cluster.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The same place in another program's shared memory.
DEVICE u32 neighbour(u32 a, u32 rank) {
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(a), "r"(rank));
  return there;
}

// Barriers in shared memory that also count bytes which arrive from neighbours. A phase ends once all have arrived.
DEVICE void barrier(u32 at, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
DEVICE void arrive_expecting(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
DEVICE void arrive_there(u32 at) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(at) : "memory"); }
DEVICE void wait_for(u32 at, u32 parity) {
  asm volatile(
      "{ .reg .pred p;\nwaiting_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra waiting_%=; }" ::"r"(at),
      "r"(parity)
      : "memory");
}

// Into a neighbour's shared memory, whose barrier counts the bytes: a number, or a multiple of 16.
DEVICE void tell(u32 to, float x, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(x), "r"(barrier)
               : "memory");
}
DEVICE void copy_there(u32 to, u32 from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Products of four warps. Between `begin` and `end` nothing that they use may change.
DEVICE void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void end() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
DEVICE void end_all_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }

// After `end`: what the compiler does with a sum stays behind this.
template <int N>
DEVICE void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A tile from that address on, which 64 columns wide has its groups of eight rows next to each other.
DEVICE u64 tile(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)1 << 16) | ((u64)(1024 >> 4) << 32) | ((u64)1 << 62); }

// The tile that begins so many bytes further on.
DEVICE u64 beyond(u64 tile, u32 bytes) { return tile + (bytes >> 4); }

#define INSTRUCTION(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." HALF "." HALF " "
#define D8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// ``d = add d + a b`` with 16 columns of a in registers, as products leave them; b has 16 x 64. ``ACROSS``: its rows are those of the
// sum, otherwise its columns are.
template <int ACROSS>
DEVICE void product(float (&d)[32], const u32* a, u64 b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n" INSTRUCTION(64)
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }"
      : D8(d, 0), D8(d, 8), D8(d, 16), D8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(ACROSS));
}

// ``d = add d + a b`` of tiles, 16 columns of a and 64 or 32 columns of b. ``A_ACROSS``, ``B_ACROSS``: rows of the tile are those of
// the sum; otherwise its columns are.
template <int A_ACROSS, int B_ACROSS>
DEVICE void product(float (&d)[32], u64 a, u64 b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n" INSTRUCTION(64)
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, %35, %36; }"
      : D8(d, 0), D8(d, 8), D8(d, 16), D8(d, 24)
      : "l"(a), "l"(b), "r"(add), "n"(A_ACROSS), "n"(B_ACROSS));
}

template <int A_ACROSS, int B_ACROSS>
DEVICE void product(float (&d)[16], u64 a, u64 b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %18, 0;\n" INSTRUCTION(32)
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, %19, %20; }"
      : D8(d, 0), D8(d, 8)
      : "l"(a), "l"(b), "r"(add), "n"(A_ACROSS), "n"(B_ACROSS));
}
