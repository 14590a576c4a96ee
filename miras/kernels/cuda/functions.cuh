// Activations with their slopes, and residuals of biases, as `miras.kernels._mlp_parts` and `miras.kernels._biases` have them.

#define VALUE_AND_SLOPE(name) DEVICE void name(float z, float& h, float& bend)

DEVICE float sigmoid(float z) { return reciprocal(1.0f + power_of_two(-1.4426950408889634f * z)); }

VALUE_AND_SLOPE(gelu) {
  float bell = power_of_two(-0.7213475204444817f * (z * z)), t = reciprocal(1.0f + 0.23164189f * fabsf(z));
  float series = 0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f)));
  float tail = bell * t * series;
  float below = z < 0.0f ? tail : 1.0f - tail;
  h = z * below;
  bend = below + z * (0.3989422804014327f * bell);
}

VALUE_AND_SLOPE(gelu_tanh) {
  float square = z * z, gate = sigmoid(z * (1.5957691216057308f * (1.0f + 0.044715f * square)));
  float inner = 1.5957691216057308f * (1.0f + 3.0f * 0.044715f * square);
  h = z * gate;
  bend = gate + z * (gate * (1.0f - gate)) * inner;
}

VALUE_AND_SLOPE(silu) {
  float gate = sigmoid(z);
  h = z * gate;
  bend = gate + z * (gate * (1.0f - gate));
}

VALUE_AND_SLOPE(relu) {
  bend = z > 0.0f ? 1.0f : 0.0f;
  h = z * bend;
}

VALUE_AND_SLOPE(relu2) {
  float on = z > 0.0f ? 1.0f : 0.0f;
  h = z * z * on;
  bend = 2.0f * z * on;
}

VALUE_AND_SLOPE(tanh_) {
  h = 2.0f * sigmoid(2.0f * z) - 1.0f;
  bend = 1.0f - h * h;
}

VALUE_AND_SLOPE(identity) {
  h = z;
  bend = 1.0f;
}

// Residuals of a prediction, a value and a gate, with constants C0, C1, ...

#define RESIDUAL_OF(name) DEVICE float name##_residual(float p, float v, float g)

RESIDUAL_OF(dot) { return -v; }
RESIDUAL_OF(l2) { return C0 * (p - v); }

// What a gradient d of a residual becomes for its prediction, its value and its gate.

#define PULL_BACK_OF(name) DEVICE void name##_vjp(float p, float v, float g, float d, float& d_p, float& d_v, float& d_g)

PULL_BACK_OF(dot) { d_p = 0.0f, d_v = -d, d_g = 0.0f; }
PULL_BACK_OF(l2) { d_p = C0 * d, d_v = -C0 * d, d_g = 0.0f; }
