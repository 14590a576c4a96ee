// `miras/kernels/cuda/hopper.cuh` for a processor: threads are fibers that take turns at barriers, products read their operands
// where descriptors say they lie. What it cannot see: missing fences, and copies or products that are waited for too late.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static inline
#define __global__
#define __shared__
#define __align__(n)
#define __cluster_dims__(...)
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 {
  u32 x, y;
};
struct uint4 {
  u32 x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
static float2 make_float2(float x, float y) { return {x, y}; }
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Barrier {
  int wanted, here = 0, turn = 0;
};

struct Warp {
  Barrier barrier{32};
  u32 told[32][5];
};

struct Counter {
  int wanted = 0, here = 0, bytes = 0, phase = 0;
};

struct Program {
  std::vector<unsigned char> memory;
  Barrier barrier, groups[2] = {{128}, {128}};
  std::vector<Warp> warps;
  std::map<u32, Counter> counters;
};

struct Cluster {
  std::vector<Program> programs;
  Barrier barrier;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Cluster* cluster;
  u32 rank, thread, block, blocks;
  bool over = false;
};

static Fiber* now;
static ucontext_t scheduler;
struct Index {
  u32 x;
};
#define threadIdx (Index{now->thread})
#define blockIdx (Index{now->block})
#define gridDim (Index{now->blocks})
unsigned char room[1];

static Program& program() { return now->cluster->programs[now->rank]; }
static Warp& warp_of() { return program().warps[now->thread / 32]; }

static void meet(Barrier& b) {
  int turn = b.turn;
  if (++b.here == b.wanted) {
    b.here = 0;
    b.turn++;
    return;
  }
  while (b.turn == turn) swapcontext(&now->context, &scheduler);
}

static void __syncthreads() { meet(program().barrier); }
static void group_barrier(u32 group) { meet(program().groups[group]); }

// What all threads of a warp tell each other.
static void exchange(const u32* mine, int count, u32 (*all)[5]) {
  Warp& w = warp_of();
  memcpy(w.told[now->thread % 32], mine, count * 4);
  meet(w.barrier);
  memcpy(all, w.told, sizeof w.told);
  meet(w.barrier);
}

static float __shfl_xor_sync(u32, float x, int by) {
  u32 bits, all[32][5];
  memcpy(&bits, &x, 4);
  exchange(&bits, 1, all);
  memcpy(&x, all[(now->thread % 32) ^ by], 4);
  return x;
}

static unsigned char* memory(u32 a) {
  u32 rank = a >> 24 ? (a >> 24) - 1 : now->rank;
  Program& p = now->cluster->programs[rank];
  if ((a & 0xffffff) >= p.memory.size()) abort();
  return p.memory.data() + (a & 0xffffff);
}

static u32 at(u32 tile, u32 row, u32 piece) { return tile + row * 128 + ((piece ^ (row & 7)) << 4); }
static u32 opaque(u32 x) { return x; }
static u32 warp_index() { return now->thread / 32; }
static u32 shared_address(const void*) { return 0; }

static u32 bits_of(float x) {
  u32 b;
  memcpy(&b, &x, 4);
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static float low(u32 both) {
  u32 b = both << 16;
  float x;
  memcpy(&x, &b, 4);
  return x;
}
static float high(u32 both) { return low(both >> 16); }
static u32 pack(float a, float b) { return (bits_of(a) & 0xffff) | bits_of(b) << 16; }
static float power_of_two(float x) { return std::exp2(x); }
static float reciprocal(float x) { return 1 / x; }
static float root(float x) { return std::sqrt(x); }
static float reciprocal_root(float x) { return 1 / std::sqrt(x); }

template <typename T>
static T get(u32 a, int i = 0) {
  T x;
  memcpy(&x, memory(a) + i * sizeof(T), sizeof(T));
  return x;
}
static float load(u32 a) { return get<float>(a); }
static void load(u32 a, float& x, float& y) { x = get<float>(a), y = get<float>(a, 1); }
static void load(u32 a, float& x, float& y, float& z, float& w) { load(a, x, y), load(a + 8, z, w); }
static void load(u32 a, u32& x, u32& y) { x = get<u32>(a), y = get<u32>(a, 1); }
static void load(u32 a, u32& x, u32& y, u32& z, u32& w) { load(a, x, y), load(a + 8, z, w); }
static u32 again(u32 a) { return get<u32>(a); }
static void store(u32 a, float x) { memcpy(memory(a), &x, 4); }
static void store(u32 a, float x, float y) { store(a, x), store(a + 4, y); }
static void store(u32 a, float x, float y, float z, float w) { store(a, x, y), store(a + 8, z, w); }
static void store(u32 a, u32 x, u32 y) { memcpy(memory(a), &x, 4), memcpy(memory(a) + 4, &y, 4); }

static void matrices(bool across, u32 row, u32 a, u32 b, u32 c, u32 d) {
  u32 mine[5] = {row, a, b, c, d}, all[32][5], lane = now->thread % 32;
  exchange(mine, 5, all);
  for (u32 m = 0; m < 4; m++)
    for (u32 i = 0; i < 2; i++) {
      u32 r = lane / 4, c = lane % 4 * 2 + i;
      unsigned short x = mine[1 + m] >> (16 * i);
      memcpy(memory(all[8 * m + (across ? c : r)][0]) + 2 * (across ? r : c), &x, 2);
    }
}
static void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d) { matrices(false, row, a, b, c, d); }
static void store_transposed(u32 row, u32 a, u32 b, u32 c, u32 d) { matrices(true, row, a, b, c, d); }

static void load_matrices(u32 row, u32& a, u32& b, u32& c, u32& d) {
  u32 all[32][5], lane = now->thread % 32, *found[4] = {&a, &b, &c, &d};
  exchange(&row, 1, all);
  for (u32 m = 0; m < 4; m++) memcpy(found[m], memory(all[8 * m + lane / 4][0]) + lane % 4 * 4, 4);
}

static void fetch(const float* from, float* x) { memcpy(x, from, 16); }
static void fetch(const unsigned short* from, uint2& x) { memcpy(&x, from, 8); }
static void ask(const void*) {}
static void add_to(float* sum, float x, float y, float z, float w) { sum[0] += x, sum[1] += y, sum[2] += z, sum[3] += w; }
struct Map {
  unsigned char* data;
  u64 columns, rows, blocks, rest[12];
};
static void ask(const Map&, u32, u32) {}
static void count(u32 a, int arrivals, int bytes);
template <class Copy>
static void pieces(const Map& map, u32 row, u32 column, u32 tile, Copy copy) {  // of 16 bytes
  for (u32 i = 0; i < map.blocks * map.rows * 8; i++) {
    const u32 block = i / (map.rows * 8), r = i / 8 % map.rows, piece = i % 8;
    copy(map.data + ((row + r) * map.columns + column + block * 64 + piece * 8) * 2,
         memory(at(tile + block * map.rows * 128, r, piece)));
  }
}
static void copy_in(u32 to, const Map& map, u32 row, u32 column, u32 barrier) {
  pieces(map, row, column, to, [](void* there, void* here) { memcpy(here, there, 16); });
  count(barrier, 0, -(int)(map.blocks * map.rows * 128));
}
static void copy_out(const Map& map, u32 row, u32 column, u32 from) {
  pieces(map, row, column, from, [](void* there, void* here) { memcpy(there, here, 16); });
}
static void close() {}
template <int N>
static void read() {}
static void written() {}
static void publish() {}

static u32 cluster_rank() { return now->rank; }
static void cluster_arrive() {}
static void cluster_wait() { meet(now->cluster->barrier); }
static u32 neighbour(u32 a, u32 rank) { return a | (rank + 1) << 24; }

static Counter& counter(u32 a) { return now->cluster->programs[a >> 24 ? (a >> 24) - 1 : now->rank].counters[a & 0xffffff]; }
static void count(u32 a, int arrivals, int bytes) {
  Counter& c = counter(a);
  c.here += arrivals, c.bytes += bytes;
  if (c.here == c.wanted && !c.bytes) c.here = 0, c.phase++;
}
static void barrier(u32 a, u32 arrivals) { counter(a).wanted = arrivals; }
static void barriers_made() {}
static void arrive(u32 a) { count(a, 1, 0); }
static void arrive_expecting(u32 a, u32 bytes) { count(a, 1, bytes); }
static void arrive_there(u32 a) { arrive(a); }
static void wait_for(u32 a, u32 parity) {
  while ((counter(a).phase & 1) == (int)parity) swapcontext(&now->context, &scheduler);
}
static void tell(u32 to, float x, u32 barrier) {
  store(to, x);
  count(barrier, 0, -4);
}
static void copy_there(u32 to, u32 from, u32 bytes, u32 barrier) {
  memcpy(memory(to), memory(from), bytes);
  count(barrier, 0, -(int)bytes);
}

static void begin() {}
static void commit() {}
static void end() {}
static void end_all_but_one() {}
template <int N>
static void settle(float (&)[N]) {}
static u64 tile(u32 a) { return a; }
static u64 beyond(u64 tile, u32 bytes) { return tile + bytes; }

// The number in that row and column of a tile from that address on.
static float element(u64 tile, u32 row, u32 column) {
  u32 a = (u32)tile + row * 128 + column * 2;
  unsigned short x = get<unsigned short>(a ^ (a >> 7 & 7) << 4);
  return low(x);
}

template <int ACROSS>
static void product(float (&d)[32], const u32* a, u64 b, int add) {
  u32 all[32][5], lane = now->thread % 32, g = lane / 4, t = lane % 4;
  exchange(a, 4, all);
  for (int i = 0; i < 32; i++) {
    u32 column = 8 * (i >> 2) + 2 * t + (i & 1), half = i >> 1 & 1;
    float sum = 0;
    for (u32 k = 0; k < 16; k++) {
      u32 both = all[4 * g + k % 8 / 2][half + 2 * (k / 8)];
      sum += (k & 1 ? high(both) : low(both)) * (ACROSS ? element(b, k, column) : element(b, column, k));
    }
    d[i] = add ? d[i] + sum : sum;
  }
}

template <int A_ACROSS, int B_ACROSS, int N>
static void product(float (&d)[N], u64 a, u64 b, int add) {
  u32 thread = now->thread % 128, g = thread / 4 % 8, t = thread % 4, row = thread / 32 * 16;
  for (int i = 0; i < N; i++) {
    u32 column = 8 * (i >> 2) + 2 * t + (i & 1), r = row + g + 8 * (i >> 1 & 1);
    float sum = 0;
    for (u32 k = 0; k < 16; k++)
      sum += (A_ACROSS ? element(a, k, r) : element(a, r, k)) * (B_ACROSS ? element(b, k, column) : element(b, column, k));
    d[i] = add ? d[i] + sum : sum;
  }
}

static std::function<void()> body;
static void enter() {
  body();
  now->over = true;
  swapcontext(&now->context, &scheduler);
}

// Runs a kernel in clusters of ``ranks`` programs, one cluster after the other.
static void run(u32 clusters, u32 ranks, u32 threads, u32 bytes, std::function<void()> kernel) {
  body = kernel;
  for (u32 c = 0; c < clusters; c++) {
    Cluster cluster;
    cluster.barrier.wanted = ranks * threads;
    for (u32 r = 0; r < ranks; r++)
      cluster.programs.push_back(
          {std::vector<unsigned char>(bytes, 0xff), Barrier{(int)threads}, {{128}, {128}}, std::vector<Warp>(threads / 32)});
    std::vector<Fiber> fibers(ranks * threads);
    for (u32 i = 0; i < fibers.size(); i++) {
      Fiber& f = fibers[i];
      f.stack.reset(new char[1 << 18]);
      f.cluster = &cluster, f.rank = i / threads, f.thread = i % threads, f.block = c * ranks + f.rank,
      f.blocks = clusters * ranks;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = 1 << 18;
      makecontext(&f.context, enter, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (Fiber& f : fibers)
        if (!f.over) {
          left = true;
          now = &f;
          swapcontext(&scheduler, &f.context);
        }
    }
  }
}
