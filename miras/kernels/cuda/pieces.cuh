// What the scans of the perceptron share: sizes, and pieces of what programs do.

constexpr int C = 64, I = 64, O = 64, THREADS = 256, J = SLOT ? 2 : 1, F = 128 * RANKS;

// Of a tile, and of a row of sums that programs tell each other: its distance from the next keeps rows out of each other's banks.
constexpr u32 TILE = 8192, ROW = 320;

// Rows 0 and 1 of what products leave of a matrix: the eight numbers of columns ``8 j`` and ``8 j + 8``, row by row.
DEVICE void fragments(const float (&x)[32], u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) a[i] = pack(x[2 * i], x[2 * i + 1]);
}

// Where rows of this thread's warp go, with `store_matrices`: 16 rows of a tile.
DEVICE void store_tile(u32 tile, u32 first, u32 lane, const u32 (&a)[16]) {
  const u32 place = at(tile, first + (lane & 15), lane >> 4);
#pragma unroll
  for (int j = 0; j < 8; j += 2) store_matrices(place ^ (j << 4), a[2 * j], a[2 * j + 1], a[2 * j + 2], a[2 * j + 3]);
}

// A tile from rows that are so many numbers apart.
DEVICE void load_tile(u32 to, const unsigned short* from, int stride, u32 thread) {
  const u32 row = thread >> 3, piece = thread & 7;
  const u32 place = at(to, row, piece);
  const unsigned short* source = from + row * stride + piece * 8;
  copy(place, source);
  copy(place + 4096, source + 32 * stride);
}

// Sums over the hidden width: every program's part, 64 tokens and 32 channels of a group of four warps as products leave them, goes to
// the place of its rank in all of them; barriers of all threads, of even and of odd chunks, count what comes from others.
DEVICE void tell_all(u32 sums, u32 barrier, u32 rank, u32 row, u32 channel, u32 thread, const float (&part)[16]) {
  const u32 place = sums + rank * (C * ROW) + row * ROW + channel * 4;
#pragma unroll
  for (int r = 1; r < RANKS; r++) {
    const u32 there = neighbour(place, rank ^ r), counter = neighbour(barrier, rank ^ r);
#pragma unroll
    for (int j = 0; j < 8; j++) tell(there + 32 * (j >> 1) + 8 * ROW * (j & 1), part[2 * j], part[2 * j + 1], counter);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) store(place + 32 * (j >> 1) + 8 * ROW * (j & 1), part[2 * j], part[2 * j + 1]);
  if (RANKS > 1 && thread == 0) {
    arrive_expecting(barrier, (RANKS - 1) * C * O * 4);
  } else {
    arrive(barrier);
  }
}

// Four channels of a token, in the order of ranks.
DEVICE void add_up(u32 from, float* x) {
  load(from, x[0], x[1], x[2], x[3]);
#pragma unroll
  for (int r = 1; r < RANKS; r++) {
    float more[4];
    load(from + r * (C * ROW), more[0], more[1], more[2], more[3]);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] += more[i];
  }
}

// Over the four threads of a token.
DEVICE float total(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Both matrices become ``mix[0] a + mix[1] m`` and ``mix[2] a + mix[3] m``.
DEVICE void mixed(float (&a)[32], float (&m)[32], const float* mix) {
#pragma unroll
  for (int i = 0; i < 32; i++) {
    float x = mix[2] * a[i] + mix[3] * m[i];
    a[i] = mix[0] * a[i] + mix[1] * m[i];
    m[i] = x;
  }
}

