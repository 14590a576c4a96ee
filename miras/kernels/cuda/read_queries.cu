// What queries read, as `miras.kernels._mlp.read.read` has it, for heads and chunks of 64.
//
//     z = K W1,  h = act(z),  u1 = (u2 W2^T) act'(z)
//     zr = sum rows_j (Q W1_j) + P u1,  hr = act(zr)          P = -pairs s (Q K^T)
//     out = sum rows_j (hr W2_j) + S u2                       S = -pairs s (hr h^T)
//
// Programs stay for many chunks and load stacks ahead; two groups of four warps take tiles of 64 of the hidden width in turns.

// Tiles in shared memory: queries, keys and errors of two chunks; P, later S; of each group the stacks of two steps, h, and u1, later hr.
constexpr u32 CLUSTER = 1;
constexpr u32 TOKENS = 0, SCORES = 6 * TILE, OWN = 7 * TILE, OF_A_STEP = 2 * J * TILE, H = 2 * OF_A_STEP, U1 = H + TILE,
              OF_A_GROUP = U1 + TILE, BARRIERS = OWN + 2 * OF_A_GROUP, BYTES = BARRIERS + 48;
static_assert(BYTES == SHARED, "what the launch has set aside");

// Where the second group leaves sums for the first: in the places of h and u1 of both, four numbers a thread at a time.
DEVICE u32 place_of(u32 base, u32 thread, int i) {
  const u32 tile = i >> 2, group = tile >> 1;
  return base + OWN + group * OF_A_GROUP + H + (tile & 1) * TILE + (i & 3) * 2048 + (thread & 127) * 16;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    read_queries(const __grid_constant__ Map q, const __grid_constant__ Map k, const float* lr, const float* rows,
                 const unsigned short* pairs, const float* squares, const __grid_constant__ Map seen1,
                 const __grid_constant__ Map seen2, const __grid_constant__ Map kept_u2, float* out, unsigned short* answer,
                 int chunks, int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), half = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, mine = (warp & 3) * 16, row = mine + g, own = base + OWN + half * OF_A_GROUP;
  const u32 counters = base + BARRIERS + 16 + 16 * half;  // of the stacks of both steps in flight
  const bool leads = (thread & 127) == 0;                 // copies of its group

  if (thread < 6) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  __syncthreads();

  auto load_stacks = [&](int local, int i, u32 step) {
    const u32 counter = counters + 8 * (step & 1), to = own + (step & 1) * OF_A_STEP, column = 64 * (2 * i + half);
    arrive_expecting(counter, OF_A_STEP);
    copy_in(to, seen1, local * C * J, column, counter);
    copy_in(to + J * TILE, seen2, local * C * J, column, counter);
  };
  auto load_tokens = [&](int local, u32 turn) {
    const u32 to = base + TOKENS + (turn & 1) * 3 * TILE, counter = base + BARRIERS + 8 * (turn & 1);
    const u32 token = chunk_of(local, first, count, total_chunks) * C;
    arrive_expecting(counter, 3 * TILE);
    copy_in(to, q, token, 0, counter);
    copy_in(to + TILE, k, token, 0, counter);
    copy_in(to + 2 * TILE, kept_u2, local * C, 0, counter);
  };
  const int every = gridDim.x, begins = blockIdx.x;
  if (thread == 0 && begins < chunks) load_tokens(begins, 0);
  if (leads && begins < chunks) load_stacks(begins, 0, 0);

  u32 step = 0, turn = 0;
#pragma unroll 1
  for (int local = begins; local < chunks; local += every, turn++) {
    const long long chunk = chunk_of(local, first, count, total_chunks);
    const u32 queries = base + TOKENS + (turn & 1) * 3 * TILE, keys = queries + TILE, errors = keys + TILE;
    const unsigned short* own_pairs = pairs + chunk * C * C;
    Weights<16> by;  // of the first group
    if (half == 0) read_weights(by, own_pairs, rates_of(lr, squares, chunk, local, 0), row, t);
    float weight[2 * J];
#pragma unroll
    for (int i = 0; i < 2 * J; i++) weight[i] = rows[(chunk * J + (i >> 1)) * C + row + 8 * (i & 1)];
    u32 narrow[16];
    wait_for(base + BARRIERS + 8 * (turn & 1), turn >> 1 & 1);
    if (half == 0) {
      float x[32];
      begin();
      products<0, 0>(x, queries, keys, 0);
      commit();
      end();
      settle(x);
      weighted(x, by);
      fragments(x, narrow);
      store_tile(base + SCORES, mine, lane, narrow);
    }
    publish();
    __syncthreads();
    if (thread == 0 && local + every < chunks) load_tokens(local + every, turn + 1);

    float scores[32], y[J][32];
#pragma unroll
    for (int i = 0; i < 32; i++) {
      scores[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < J; j++) y[j][i] = 0.0f;
    }
#pragma unroll 1
    for (int i = 0; i < RANKS; i++, step++) {
      const u32 stacks = own + (step & 1) * OF_A_STEP;
      if (leads) {  // the other step's have been read
        if (i + 1 < RANKS) {
          load_stacks(local, i + 1, step + 1);
        } else if (local + every < chunks) {
          load_stacks(local + every, 0, step + 1);
        }
      }
      float zr[32];
      wait_for(counters + 8 * (step & 1), step >> 1 & 1);
      {
        float z[32], pulled[32];
        begin();
        products<0, 1>(z, keys, stacks, 0);
        products<0, 1>(pulled, errors, stacks + J * TILE, 0);
        commit();
        end();
        settle(z), settle(pulled);
        u32 wide[16];
#pragma unroll
        for (int e = 0; e < 16; e++) {
          float h[2], slope[2], curve;
          ACT(z[2 * e], h[0], slope[0], curve);
          ACT(z[2 * e + 1], h[1], slope[1], curve);
          narrow[e] = pack(h[0], h[1]);
          wide[e] = pack(pulled[2 * e] * slope[0], pulled[2 * e + 1] * slope[1]);
        }
        store_tile(own + H, mine, lane, narrow);
        store_tile(own + U1, mine, lane, wide);
      }
      publish();
      group_barrier(half);
      {
        float more[32];
        begin();
        products<0, 1>(zr, queries, stacks, 0);
        if (SLOT) products<0, 1>(more, queries, stacks + TILE, 0);
        commit();
        end();
        settle(zr);
        if (SLOT) settle(more);
        by_rows(zr, more, weight);
      }
      begin();
      products<0, 1>(zr, base + SCORES, own + U1, 1);
      commit();
      end();
      settle(zr);
#pragma unroll
      for (int e = 0; e < 32; e++) {
        float slope, curve;
        ACT(zr[e], zr[e], slope, curve);
      }
      fragments(zr, narrow);
      group_barrier(half);  // u1 has been read
      store_tile(own + U1, mine, lane, narrow);
      publish();
      group_barrier(half);
      begin();
      products<0, 0>(scores, own + U1, own + H, 1);
#pragma unroll
      for (int j = 0; j < J; j++) products<0, 0>(y[j], own + U1, stacks + (J + j) * TILE, 1);
      commit();
      end();
      settle(scores);
#pragma unroll
      for (int j = 0; j < J; j++) settle(y[j]);
      publish();
      group_barrier(half);  // stacks and what was formed have been read
    }
    by_rows(y[0], y[J - 1], weight);

    // both groups' sums
    if (half == 0) read_weights(by, own_pairs, rates_of(lr, squares, chunk, local, 1), row, t);
    __syncthreads();
    if (half == 1) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        store(place_of(base, thread, i), scores[4 * i], scores[4 * i + 1], scores[4 * i + 2], scores[4 * i + 3]);
        store(place_of(base, thread, 8 + i), y[0][4 * i], y[0][4 * i + 1], y[0][4 * i + 2], y[0][4 * i + 3]);
      }
    }
    __syncthreads();
    if (half == 0) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        float a[4], b[4];
        load(place_of(base, thread, i), a[0], a[1], a[2], a[3]);
        load(place_of(base, thread, 8 + i), b[0], b[1], b[2], b[3]);
#pragma unroll
        for (int j = 0; j < 4; j++) scores[4 * i + j] += a[j], y[0][4 * i + j] += b[j];
      }
      weighted(scores, by);
      fragments(scores, narrow);
      store_tile(base + SCORES, mine, lane, narrow);
      publish();
      group_barrier(0);
      begin();
      products<0, 1>(y[0], base + SCORES, errors, 1);
      commit();
      load_fragments(queries, mine, lane, narrow);
      end();
      settle(y[0]);
#pragma unroll
      for (int side = 0; side < 2; side++) {
        const long long place = (chunk * C + row + 8 * side) * O + 2 * t;
        float mean = 0.0f, square = 0.0f, scale = 1.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const float left = y[0][4 * i + 2 * side], right = y[0][4 * i + 2 * side + 1];
          if (out) *(float2*)(out + place + 8 * i) = make_float2(left, right);
          mean += left + right;
        }
        mean = NORM ? total(mean) * (1.0f / O) : 0.0f;
        if (NORM) {
#pragma unroll
          for (int i = 0; i < 8; i++) {
            const float left = y[0][4 * i + 2 * side] - mean, right = y[0][4 * i + 2 * side + 1] - mean;
            square += left * left + right * right;
          }
          scale = reciprocal_root(total(square) * (1.0f / O) + EPS);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float left = (y[0][4 * i + 2 * side] - mean) * scale, right = (y[0][4 * i + 2 * side + 1] - mean) * scale;
          if (RESIDUAL) left += low(narrow[2 * i + side]), right += high(narrow[2 * i + side]);
          *(u32*)(answer + place + 8 * i) = pack(left, right);
        }
      }
    }
    publish();
    __syncthreads();  // tokens, scores and sums have been read
  }
}
