// What the reverse scan leaves to be done for all chunks, as `miras.kernels._mlp.write_backward` has it, for heads and chunks of 64:
// gradients of keys, mixing, coefficients and rates.
//
//     x_j = u1 late1_j^T,  y_j = h late2_j^T,  k' = near + z' W1^T + sum c_j s x_j
//     mix'_ij = <late_i, seen_j>,  into'_j = s (<x_j, k> + <y_j, u2>) of every token
//
// It reads everything once. Programs stay for many chunks and load a tile of 64 of the hidden width ahead; the first group of four warps
// has the first matrix, the other the second.

// Tiles in shared memory: of two steps what products and inner products take; keys and errors of two chunks.
constexpr u32 CLUSTER = 1;
constexpr u32 U1 = 0, DZ = TILE, H = 2 * TILE, STACKS = 3 * TILE, OF_A_STEP = (3 + 4 * J) * TILE, TOKENS = 2 * OF_A_STEP,
              SUMS = TOKENS + 4 * TILE, MIXED = SUMS + 2 * C * 4, BARRIERS = MIXED + 8 * 4 * 4, BYTES = BARRIERS + 32;
static_assert(BYTES == SHARED, "what the launch has set aside");

// In `STACKS`, of each matrix: seen (J), late (J).

constexpr int TILES = F / 64;

// What gradients of a token take, read long before they are formed: loads behind stores would wait for each other.
struct Token {
  float rate, rate2, d_rate, d_rate2, write[J], lr, bound, h_square, u1_square, u2_square;
  float2 near[8];  // channels ``8 i + 2 t`` and the next
};

// The sums of products of numbers in the same places of two tiles, this thread's part.
DEVICE float inner(u32 a, u32 b, u32 thread) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    u32 x[4], y[4];
    load(a + (thread + 128 * i) * 16, x[0], x[1], x[2], x[3]);
    load(b + (thread + 128 * i) * 16, y[0], y[1], y[2], y[3]);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += low(x[j]) * low(y[j]) + high(x[j]) * high(y[j]);
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    write_backward(const __grid_constant__ Map k, const float* lr, const float* inverse, const float* into, const float* squares,
                   const __grid_constant__ Map seen1, const __grid_constant__ Map seen2, const __grid_constant__ Map kept_u2,
                   const __grid_constant__ Map h, const __grid_constant__ Map u1, const float* d_rates,
                   const __grid_constant__ Map late1, const __grid_constant__ Map late2, const __grid_constant__ Map d_z,
                   unsigned short* d_k, const float* near, float* d_lr, float* d_inverse, float* d_mix, float* d_into, int chunks,
                   int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), half = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, mine = (warp & 3) * 16, row = mine + g;

  if (thread < 4) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  __syncthreads();

  // barriers of both steps in flight, then of both chunks
  const u32 copies = copies_of(lane, warp);
  auto load_step = [&](int local, int tile, u32 step) {
    const u32 to = base + (step & 1) * OF_A_STEP, counter = base + BARRIERS + 8 * (step & 1), rows = local * C,
              column = 64 * tile;
    if (thread == 0) arrive_expecting(counter, OF_A_STEP);
    const Map *wide = warp == 0   ? &u1
                      : warp == 1 ? &d_z
                                  : &h,
              *stack = warp == 3   ? &seen1
                       : warp == 4 ? &late1
                       : warp == 5 ? &seen2
                                   : &late2;
    const u32 place = warp < 3 ? warp * TILE : STACKS + (warp - 3) * J * TILE;
    if (copies < 7) copy_in(to + place, *(warp < 3 ? wide : stack), warp < 3 ? rows : rows * J, column, counter);
  };
  auto load_tokens = [&](int local, u32 turn) {
    const u32 to = base + TOKENS + (turn & 1) * 2 * TILE, counter = base + BARRIERS + 16 + 8 * (turn & 1);
    if (copies != 7) return;
    arrive_expecting(counter, 2 * TILE);
    copy_in(to, k, chunk_of(local, first, count, total_chunks) * C, 0, counter);
    copy_in(to + TILE, kept_u2, local * C, 0, counter);
  };
  const int every = gridDim.x, begins = blockIdx.x;
  if (begins < chunks) {
    load_tokens(begins, 0);
    load_step(begins, 0, 0);
    load_step(begins, 1, 1);
  }

  u32 step = 0, turn = 0;
#pragma unroll 1
  for (int local = begins; local < chunks; local += every, turn++) {
    const long long chunk = chunk_of(local, first, count, total_chunks);
    float x[J][32], dk[32], mixed_sums[3] = {0.0f, 0.0f, 0.0f};
    Token tokens[2];  // of the first group
    if (half == 0) {
#pragma unroll
      for (int side = 0; side < 2; side++) {
        Token& one = tokens[side];
        const u32 token = row + 8 * side;
        one.rate = rates_of(lr, squares, chunk, local, 0)[token], one.rate2 = rates_of(lr, squares, chunk, local, 1)[token];
        one.d_rate = d_rates[(long long)local * 2 * C + token], one.d_rate2 = d_rates[((long long)local * 2 + 1) * C + token];
#pragma unroll
        for (int j = 0; j < J; j++) one.write[j] = into[(chunk * J + j) * C + token];
#pragma unroll
        for (int i = 0; i < 8; i++) one.near[i] = *(const float2*)(near + (chunk * C + token) * I + 8 * i + 2 * t);
        if (BOUND) {
          const float* norms = squares + (long long)local * SQUARES + token;
          one.lr = lr[chunk * C + token], one.bound = inverse[chunk * C + token];
          one.h_square = norms[0], one.u1_square = norms[C], one.u2_square = norms[2 * C];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
      dk[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < J; j++) x[j][i] = 0.0f;
    }
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++, step++) {
      const u32 at_hand = base + (step & 1) * OF_A_STEP, seen = at_hand + STACKS + half * 2 * J * TILE, late = seen + J * TILE;
      wait_for(base + BARRIERS + 8 * (step & 1), step >> 1 & 1);
      begin();
      if (half == 0) products<0, 0>(dk, at_hand + DZ, seen, 1);
#pragma unroll
      for (int j = 0; j < J; j++) products<0, 0>(x[j], at_hand + (half ? H : U1), late + j * TILE, 1);
      commit();
      mixed_sums[0] += inner(late, seen, thread & 127);
      if (SLOT) {
        mixed_sums[1] += inner(late, seen + TILE, thread & 127);
        mixed_sums[2] += inner(late + TILE, seen + TILE, thread & 127);
      }
      end();
      settle(dk);
#pragma unroll
      for (int j = 0; j < J; j++) settle(x[j]);
      publish();
      __syncthreads();
      const int ahead = tile + 2, next = ahead < TILES ? local : local + every;  // what comes two steps later
      if (next < chunks) load_step(next, ahead % TILES, step + 2);
      if (tile == 0 && local + every < chunks) load_tokens(local + every, turn + 1);
    }

    // tokens
    u32 with[16];
    wait_for(base + BARRIERS + 16 + 8 * (turn & 1), turn >> 1 & 1);
    load_fragments(base + TOKENS + (turn & 1) * 2 * TILE + half * TILE, mine, lane, with);
    float of_rows[J][2], k_square[2] = {0.0f, 0.0f};
    if (BOUND) {
#pragma unroll
      for (int i = 0; i < 16; i++) k_square[i & 1] += low(with[i]) * low(with[i]) + high(with[i]) * high(with[i]);
      k_square[0] = total(k_square[0]), k_square[1] = total(k_square[1]);
    }
#pragma unroll
    for (int j = 0; j < J; j++) {
      inner_rows(x[j], with, of_rows[j][0], of_rows[j][1]);
      if (half && t == 0) {
        store(base + SUMS + (j * C + row) * 4, of_rows[j][0]);
        store(base + SUMS + (j * C + row + 8) * 4, of_rows[j][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * J - 1; i++) {
      const float sum = total_of_rows(total(mixed_sums[i]));
      if (lane == 0) store(base + MIXED + (warp * 4 + i) * 4, sum);
    }
    __syncthreads();
    if (half == 0) {
#pragma unroll
      for (int side = 0; side < 2; side++) {
        const Token& one = tokens[side];
        const u32 token = row + 8 * side;
        float d_s1 = one.d_rate, d_s2 = one.d_rate2, scale[J];
#pragma unroll
        for (int j = 0; j < J; j++) {
          const float other = load(base + SUMS + (j * C + token) * 4);
          scale[j] = one.write[j] * one.rate;
          d_s1 += one.write[j] * of_rows[j][side], d_s2 += one.write[j] * other;
          if (t == 0) d_into[(chunk * J + j) * C + token] = of_rows[j][side] * one.rate + other * one.rate2;
        }
        float of_keys = 0.0f;  // what the bound adds to gradients of keys, times these
        if (BOUND) {
          float lr1, lr2, bound1, bound2, d_square;
          bounded_vjp(d_s2, one.lr, one.bound, one.h_square * one.u2_square, lr2, bound2, d_square);
          bounded_vjp(d_s1, one.lr, one.bound, k_square[side] * one.u1_square, lr1, bound1, d_square);
          of_keys = d_square * one.u1_square;
          d_s1 = lr1, d_s2 = lr2;
          if (t == 0) d_inverse[chunk * C + token] = bound1 + bound2;
        }
        if (t == 0) d_lr[chunk * C + token] = d_s1 + d_s2;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float d[2] = {dk[4 * i + 2 * side], dk[4 * i + 2 * side + 1]};
#pragma unroll
          for (int j = 0; j < J; j++) d[0] += scale[j] * x[j][4 * i + 2 * side], d[1] += scale[j] * x[j][4 * i + 2 * side + 1];
          if (BOUND) d[0] += of_keys * low(with[2 * i + side]), d[1] += of_keys * high(with[2 * i + side]);
          *(u32*)(d_k + (chunk * C + token) * I + 8 * i + 2 * t) = pack(one.near[i].x + d[0], one.near[i].y + d[1]);
        }
      }
    } else if (thread - 128 < J * J) {
      const u32 which = thread - 128;
      float sum = 0.0f;
      if (which != 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum += load(base + MIXED + (i * 4 + (which == 3 ? 2 : which)) * 4);
      }
      d_mix[chunk * J * J + which] = sum;
    }
    __syncthreads();  // sums have been read
  }
}
