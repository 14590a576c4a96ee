// The rest of what `read_backward` begins, as `miras.kernels._mlp.read_backward.query_backward` has it, for heads and chunks of 64:
// gradients of queries, and of keys as far as queries read them.
//
//     p = zr' u1^T,  x_j = zr' W1_j^T,  S = -pairs s p
//     q' = sum rows_j x_j + S K,  near = S^T Q,  and the gradients of rows, pairs and rates
//
// Programs stay for many chunks and load a tile of 64 of the hidden width ahead; the first group of four warps has p, the other x.

// Tiles in shared memory: of two steps z' of reads, u1 and the first matrix; queries and keys of two chunks; S.
constexpr u32 CLUSTER = 1;
constexpr u32 DZ = 0, U1 = TILE, FIRST = 2 * TILE, OF_A_STEP = (2 + J) * TILE, TOKENS = 2 * OF_A_STEP, SCORES = TOKENS + 4 * TILE,
              COLUMNS = SCORES + TILE, BARRIERS = COLUMNS + 4 * C * 4, BYTES = BARRIERS + 32;
static_assert(BYTES == SHARED, "what the launch has set aside");

constexpr int TILES = F / 64;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    query_backward(const __grid_constant__ Map q, const __grid_constant__ Map k, const float* lr, const float* rows,
                   const unsigned short* pairs, const float* squares, const unsigned short* d_answer,
                   const __grid_constant__ Map seen1, const __grid_constant__ Map u1, const __grid_constant__ Map d_zr,
                   unsigned short* d_q, float* near, float* d_rows, unsigned short* d_pairs, float* d_rates, int chunks,
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
    const u32 to = base + (step & 1) * OF_A_STEP, counter = base + BARRIERS + 8 * (step & 1), place = local * C,
              column = 64 * tile;
    if (thread == 0) arrive_expecting(counter, OF_A_STEP);
    const Map& map = warp == 0 ? d_zr : warp == 1 ? u1 : seen1;
    if (copies < 3) copy_in(to + warp * TILE, map, warp < 2 ? place : place * J, column, counter);
  };
  auto load_tokens = [&](int local, u32 turn) {
    const u32 to = base + TOKENS + (turn & 1) * 2 * TILE, counter = base + BARRIERS + 16 + 8 * (turn & 1);
    const u32 token = chunk_of(local, first, count, total_chunks) * C;
    if (copies == 3) arrive_expecting(counter, 2 * TILE), copy_in(to, q, token, 0, counter);
    if (copies == 4) copy_in(to + TILE, k, token, 0, counter);
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
    float x[J][32];  // of the first group p, alone
#pragma unroll
    for (int i = 0; i < 32; i++) {
#pragma unroll
      for (int j = 0; j < J; j++) x[j][i] = 0.0f;
    }
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++, step++) {
      const u32 at_hand = base + (step & 1) * OF_A_STEP;
      wait_for(base + BARRIERS + 8 * (step & 1), step >> 1 & 1);
      begin();
      products<0, 0>(x[0], at_hand + DZ, at_hand + (half ? FIRST : U1), 1);
      if (SLOT && half) products<0, 0>(x[J - 1], at_hand + DZ, at_hand + FIRST + TILE, 1);
      commit();
      end();
#pragma unroll
      for (int j = 0; j < J; j++) settle(x[j]);
      __syncthreads();
      const int ahead = tile + 2, next = ahead < TILES ? local : local + every;  // what comes two steps later
      if (next < chunks) load_step(next, ahead % TILES, step + 2);
      if (tile == 0 && local + every < chunks) load_tokens(local + every, turn + 1);
    }

    const u32 queries = base + TOKENS + (turn & 1) * 2 * TILE, keys = queries + TILE;
    wait_for(base + BARRIERS + 16 + 8 * (turn & 1), turn >> 1 & 1);
    float weight[2 * J];
#pragma unroll
    for (int i = 0; i < 2 * J; i++) weight[i] = rows[(chunk * J + (i >> 1)) * C + row + 8 * (i & 1)];
    u32 known
        [16];  // gradients of pairs, or of answers: everything is read before anything is written, which would wait for each other
    if (half == 0) {
      // scores, and the gradients of what they were multiplied with
      Weights<16> by;
      read_weights(by, pairs + chunk * C * C, rates_of(lr, squares, chunk, local, 0), row, t);
#pragma unroll
      for (int i = 0; i < 16; i++) known[i] = *at_place(d_pairs + chunk * C * C, row, t, i);
      float y[32];
      u32 narrow[16];
      begin();
      products<0, 0>(y, queries, keys, 0);
      commit();
      end();
      settle(y);
      float in_columns[16];
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const float2 pair = make_float2(low(by.pairs[i]), high(by.pairs[i])), rate = by.rates[i >> 1];
        const float left = y[2 * i] * x[0][2 * i], right = y[2 * i + 1] * x[0][2 * i + 1];
        known[i] = pack(low(known[i]) - left * rate.x, high(known[i]) - right * rate.y);
        narrow[i] = pack(-(pair.x * rate.x) * x[0][2 * i], -(pair.y * rate.y) * x[0][2 * i + 1]);
        if (i & 1) {
          in_columns[i - 1] += left * pair.x, in_columns[i] += right * pair.y;
        } else {
          in_columns[i] = left * pair.x, in_columns[i + 1] = right * pair.y;
        }
      }
#pragma unroll
      for (int i = 0; i < 16; i++) *at_place(d_pairs + chunk * C * C, row, t, i) = known[i];
      add_columns(base + COLUMNS, in_columns, warp, lane);
      store_tile(base + SCORES, mine, lane, narrow);
    } else {
      // what the memory's queries read
      u32 with[16];
      float before[2 * J];
#pragma unroll
      for (int i = 0; i < 2 * J; i++) before[i] = d_rows[(chunk * J + (i >> 1)) * C + row + 8 * (i & 1)];
      if (RESIDUAL) {
#pragma unroll
        for (int i = 0; i < 16; i++) known[i] = *at_place(d_answer + chunk * C * O, row, t, i);
      }
      load_fragments(queries, mine, lane, with);
#pragma unroll
      for (int j = 0; j < J; j++) {
        float even, odd;
        inner_rows(x[j], with, even, odd);
        if (t == 0) {
          d_rows[(chunk * J + j) * C + row] = before[2 * j] + even;
          d_rows[(chunk * J + j) * C + row + 8] = before[2 * j + 1] + odd;
        }
      }
      by_rows(x[0], x[J - 1], weight);
    }
    publish();
    __syncthreads();
    begin();
    if (half) {
      products<0, 1>(x[0], base + SCORES, keys, 1);
    } else {
      products<1, 1>(x[0], base + SCORES, queries, 0);
    }
    commit();
    if (thread < C) d_rates[(long long)local * 2 * C + thread] = -column_sum(base + COLUMNS, thread, 4);
    end();
    settle(x[0]);
#pragma unroll
    for (int i = 0; i < 16; i++) {
      if (half) {
        if (RESIDUAL) x[0][2 * i] += low(known[i]), x[0][2 * i + 1] += high(known[i]);
        *at_place(d_q + chunk * C * I, row, t, i) = pack(x[0][2 * i], x[0][2 * i + 1]);
      } else {
        *(float2*)(near + (chunk * C + row + 8 * (i & 1)) * I + 8 * (i >> 1) + 2 * t) = make_float2(x[0][2 * i], x[0][2 * i + 1]);
      }
    }
    __syncthreads();  // scores and tokens have been read
  }
}
