// The scan of `miras.kernels._mlp_scan` for heads and chunks of 64: clusters of programs that keep a head's weights in registers.
//
// A program has 128 of the hidden width, each of its eight warps 16: rows of the transposed first matrix, of the second, and of their
// slots, as sums of matrix products. A chunk's products take one operand from there and the other from shared memory:
//
//     z^T = W1^T K^T,  h = act(z)               [F, tokens]
//     o   = h W2, summed over programs through each other's shared memory, u2 = error(o)
//     u1^T = (W2 u2^T) act'(z)                  [F, tokens]
//     W1^T = mix W1^T + (u1 c)^T K,  W2 = mix W2 + (h c)^T u2
//
// Barriers a chunk: h and W2 are there; sums are told (the cluster's); errors are there. RANKS programs make a head's width.

constexpr u32 STAGED = 272;  // bytes of a row of a stack on its way out

// Of shared memory; tiles of products stand on multiples of 1024.
constexpr u32 KEYS = 0, ERRORS = KEYS + 2 * TILE, HIDDEN = ERRORS + TILE, SECOND = HIDDEN + 2 * TILE, STAGE = SECOND + 2 * TILE,
              SUMS = (STAGE + 2 * J * 64 * STAGED + 1023) / 1024 * 1024, RATES = SUMS + 2 * RANKS * PART, BARRIERS = RATES + 2 * C * 4, BYTES = BARRIERS + 16;
static_assert(BYTES == SHARED, "what the launch has set aside");

// The transposed rows, ``[64, 128]`` with rows `STAGED` bytes apart.
DEVICE void stage(u32 room, u32 first, u32 lane, const u32 (&a)[16]) {
  u32 place = room + ((lane & 7) + (lane >> 4) * 8) * STAGED + (first + (lane >> 3 & 1) * 8) * 2;
#pragma unroll
  for (int j = 0; j < 8; j += 2)
    store_transposed(place + j * 8 * STAGED, a[2 * j], a[2 * j + 1], a[2 * j + 2], a[2 * j + 3]);
}

DEVICE void rows_of(const float* stack, u32 first, u32 g, u32 t, float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) x[i] = stack[(8 * (i >> 2) + 2 * t + (i & 1)) * F + first + g + 8 * (i >> 1 & 1)];
}

DEVICE void rows_to(float* stack, u32 first, u32 g, u32 t, const float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) stack[(8 * (i >> 2) + 2 * t + (i & 1)) * F + first + g + 8 * (i >> 1 & 1)] = x[i];
}

// 64 staged rows to rows F numbers apart.
DEVICE void write_staged(unsigned short* to, u32 room, u32 thread) {
  const u32 row = thread >> 4, piece = thread & 15, from = room + row * STAGED + piece * 16;
  unsigned short* there = to + row * F + piece * 8;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint4 x;
    load(from + i * 16 * STAGED, x.x, x.y, x.z, x.w);
    *(uint4*)(there + i * 16 * F) = x;
  }
}

extern "C" __global__ void __cluster_dims__(RANKS, 1, 1) __launch_bounds__(THREADS, 1)
scan(const unsigned short* k, const unsigned short* v, const float* gate, const float* lr, const float* mix, const float* into,
     const float* w1, const float* w2, float* end1, float* end2, int w1_stride, int w2_stride, int end1_stride, int end2_stride,
     unsigned short* seen1, unsigned short* seen2, float* kept_o, unsigned short* kept_u2, int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), group = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, rank = cluster_rank(), mine = warp * 16, column = rank * 128 + mine;
  const u32 token = thread >> 2;  // whose error this thread helps with: 16 channels from ``4 t`` on
  const long long b = blockIdx.x / RANKS;

  float a1[32], a2[32], m1[32], m2[32];
  rows_of(w1 + b * w1_stride, column, g, t, a1);
  rows_of(w2 + b * w2_stride, column, g, t, a2);
  if (SLOT) {
    rows_of(w1 + b * w1_stride + I * F, column, g, t, m1);
    rows_of(w2 + b * w2_stride + F * O, column, g, t, m2);
  }
  load_tile(base + KEYS, k + (b * total_chunks + first) * C * I, I, thread);
  arrived();
  publish();
  if (thread < 2) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  __syncthreads();
  cluster_arrive();
  cluster_wait();

  for (int n = 0; n < count; n++) {
    const long long chunk = b * total_chunks + first + n, local = b * count + n;
    const u32 keys = base + KEYS + (n & 1) * TILE;
    float by[4];
#pragma unroll
    for (int i = 0; i < J * J; i++) by[i] = mix[chunk * J * J + i];

    // answers to the keys
    float bend[32];
    {
      u32 narrow[2 * J][16];
      fragments(a1, narrow[0]);
      fragments(a2, narrow[J]);
      if (SLOT) {
        fragments(m1, narrow[1]);
        fragments(m2, narrow[3]);
      }
      begin();
#pragma unroll
      for (int s = 0; s < 4; s++) product<0>(bend, narrow[0] + 4 * s, beyond(tile(keys), 32 * s), s > 0);
      commit();
      store_tile(base + SECOND, mine, lane, narrow[J]);
#pragma unroll
      for (int i = 0; i < 2 * J; i++) stage(base + STAGE + i * 64 * STAGED, mine, lane, narrow[i]);
    }
    u32 value[8];
    const unsigned short* v_row = v + (chunk * C + token) * O + 4 * t;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      uint2 two = *(const uint2*)(v_row + 16 * j);
      value[2 * j] = two.x;
      value[2 * j + 1] = two.y;
    }
    float weight = 0.0f;
    if (thread < C * J) weight = into[chunk * J * C + thread] * lr[chunk * C + thread % C];
    end();
    settle(bend);
    u32 hidden[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
      float h0, h1;
      ACT(bend[2 * i], h0, bend[2 * i]);
      ACT(bend[2 * i + 1], h1, bend[2 * i + 1]);
      hidden[i] = pack(h0, h1);
    }
    store_tile(base + HIDDEN, mine, lane, hidden);
    publish();
    __syncthreads();

    // their sum over the hidden width, told to all
    float o[16];
    begin();
#pragma unroll
    for (int s = 0; s < 8; s++)
      product<1, 1>(o, beyond(tile(base + HIDDEN), 2048 * s), beyond(tile(base + SECOND + 64 * group), 2048 * s), s > 0);
    commit();
    if (n + 1 < count) load_tile(base + KEYS + (~n & 1) * TILE, k + (chunk + 1) * C * I, I, thread);
    if (thread < C * J) store(base + RATES + thread * 4, weight);
    end();
    settle(o);
    const u32 sums = base + SUMS + (n & 1) * (RANKS * PART), counter = base + BARRIERS + 8 * (n & 1);
    store_part(sums + rank * PART, (warp & 3) * 16 + g, group, t, o);
    publish();
    __syncthreads();
    if (thread == 0) tell_all(sums, counter, rank);

    // the stacks before the chunk
#pragma unroll
    for (int slot = 0; slot < J; slot++) {
      write_staged(seen1 + (local * J + slot) * I * F + rank * 128, base + STAGE + slot * 64 * STAGED, thread);
      write_staged(seen2 + (local * J + slot) * F * O + rank * 128, base + STAGE + (J + slot) * 64 * STAGED, thread);
    }
    wait_for(counter, n >> 1 & 1);

    // errors there
    float y[16], e[16];
#pragma unroll
    for (int j = 0; j < 4; j++) add_up(piece_of(sums, token, t) ^ (j << 6), y + 4 * j);
    const bool own = token * RANKS / C == rank;  // rows that this program writes
    if (own) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        *(float4*)(kept_o + (local * C + token) * O + 16 * j + 4 * t) = make_float4(y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    }
    float scale = 1.0f;
    if (NORM) {
      float mean = 0.0f, square = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; i++) mean += y[i];
      mean = total(mean) * (1.0f / O);
#pragma unroll
      for (int i = 0; i < 16; i++) y[i] -= mean, square += y[i] * y[i];
      scale = reciprocal_root(total(square) * (1.0f / O) + EPS);
#pragma unroll
      for (int i = 0; i < 16; i++) y[i] *= scale;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float p[4], bias_gate[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        p[i] = y[4 * j + i];
        if (GATE == 1) bias_gate[i] = gate[chunk * C + token];
        if (GATE == 2) bias_gate[i] = gate[(chunk * C + token) * O + 16 * j + 4 * t + i];
      }
      if (RESIDUAL) {
        u32 x, z;
        load((at(keys, token, t >> 1) + (t & 1) * 8) ^ (j << 5), x, z);
        p[0] += low(x), p[1] += high(x), p[2] += low(z), p[3] += high(z);
      }
      e[4 * j] = BIAS(p[0], low(value[2 * j]), bias_gate[0]);
      e[4 * j + 1] = BIAS(p[1], high(value[2 * j]), bias_gate[1]);
      e[4 * j + 2] = BIAS(p[2], low(value[2 * j + 1]), bias_gate[2]);
      e[4 * j + 3] = BIAS(p[3], high(value[2 * j + 1]), bias_gate[3]);
    }
    if (NORM) {
      float mean = 0.0f, along = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; i++) mean += e[i], along += e[i] * y[i];
      mean = total(mean) * (1.0f / O), along = total(along) * (1.0f / O);
#pragma unroll
      for (int i = 0; i < 16; i++) e[i] = (e[i] - mean - y[i] * along) * scale;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 x = pack(e[4 * j], e[4 * j + 1]), z = pack(e[4 * j + 2], e[4 * j + 3]);
      store((at(base + ERRORS, token, t >> 1) + (t & 1) * 8) ^ (j << 5), x, z);
      if (own) *(uint2*)(kept_u2 + (local * C + token) * O + 16 * j + 4 * t) = make_uint2(x, z);
    }
    arrived();
    publish();
    __syncthreads();

    // what they write
    float u1[32];
    u32 wide[16];
    fragments(a2, wide);
    begin();
#pragma unroll
    for (int s = 0; s < 4; s++) product<0>(u1, wide + 4 * s, beyond(tile(base + ERRORS), 32 * s), s > 0);
    commit();
    if (SLOT) {
      mixed(a1, m1, by);
    } else {
#pragma unroll
      for (int i = 0; i < 32; i++) a1[i] *= by[0];
    }
    end();
    settle(u1);
    if (SLOT) {
      mixed(a2, m2, by);
    } else {
#pragma unroll
      for (int i = 0; i < 32; i++) a2[i] *= by[0];
    }
#pragma unroll
    for (int i = 0; i < 32; i++) u1[i] *= bend[i];
    u32 left[J][16], right[J][16];
#pragma unroll
    for (int slot = 0; slot < J; slot++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float c0, c1;
        load(base + RATES + (slot * C + 8 * j + 2 * t) * 4, c0, c1);
        left[slot][2 * j] = pack(u1[4 * j] * c0, u1[4 * j + 1] * c1);
        left[slot][2 * j + 1] = pack(u1[4 * j + 2] * c0, u1[4 * j + 3] * c1);
        right[slot][2 * j] = pack(low(hidden[2 * j]) * c0, high(hidden[2 * j]) * c1);
        right[slot][2 * j + 1] = pack(low(hidden[2 * j + 1]) * c0, high(hidden[2 * j + 1]) * c1);
      }
      float (&first_matrix)[32] = slot ? m1 : a1, (&second_matrix)[32] = slot ? m2 : a2;
      begin();
#pragma unroll
      for (int s = 0; s < 4; s++) {
        product<1>(first_matrix, left[slot] + 4 * s, beyond(tile(keys), 2048 * s), 1);
        product<1>(second_matrix, right[slot] + 4 * s, beyond(tile(base + ERRORS), 2048 * s), 1);
      }
      commit();
    }
    end();
    settle(a1);
    settle(a2);
    if (SLOT) {
      settle(m1);
      settle(m2);
    }
  }

  if (end1) {
    rows_to(end1 + b * end1_stride, column, g, t, a1);
    rows_to(end2 + b * end2_stride, column, g, t, a2);
    if (SLOT) {
      rows_to(end1 + b * end1_stride + I * F, column, g, t, m1);
      rows_to(end2 + b * end2_stride + F * O, column, g, t, m2);
    }
  }
  cluster_arrive();
  cluster_wait();
}
