"""Test-time training: TTT-Linear, TTT-MLP, LaCT."""

from miras import MirasSpec, Surroundings
from zoo._entry import Entry

TTT = "2407.04620"
READERS = (
    "The rate of a gradient is that of its token times one of the token that reads, as in the official code, where the latter "
    "starts as one over the position in the mini-batch; algorithm='gd' has none, as the paper. In the code the layer norm has "
    "a slow gain and shift, the loss a half, and rates are divided by the width of a head. Recommended: bounded steps."
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="ttt_linear",
        title="TTT-Linear",
        paper=TTT,
        recurrence=r"W_t=W_\xi-\rho_t\sum_{\xi<i\le t}\eta_i\nabla\|\mathcal M(W_\xi;k_i)-v_i\|^2,\quad "
        r"\mathcal M(W;x)=x+\mathrm{LN}(Wx+b)",
        spec=MirasSpec.make(
            architecture={"name": "mlp", "depth": 1, "bias": True, "eps": 1e-6},
            bias={"name": "l2", "half": False},
            retention="none",
            algorithm="mini_batch",
            chunk_size=16,
            step_bound=None,
        ),
        recommended={"step_bound": 1.0},
        note=READERS,
    ),
    Entry(
        name="ttt_mlp",
        title="TTT-MLP",
        paper=TTT,
        recurrence=r"W_t=W_\xi-\rho_t\sum_{\xi<i\le t}\eta_i\nabla\|\mathcal M(W_\xi;k_i)-v_i\|^2,\quad "
        r"\mathcal M(W;x)=x+\mathrm{LN}(W_2\,\mathrm{GELU}(W_1x+b_1)+b_2)",
        spec=MirasSpec.make(
            architecture={"name": "mlp", "activation": "gelu_tanh", "bias": True, "eps": 1e-6},
            bias={"name": "l2", "half": False},
            retention="none",
            algorithm={"name": "mini_batch", "max_lr": 0.1},
            chunk_size=16,
            step_bound=None,
        ),
        recommended={"step_bound": 1.0},
        note=READERS,
    ),
    Entry(
        name="lact",
        title="LaCT, its fast weights",
        paper="2505.23884",
        recurrence=r"y_t=f(W_\xi;q_t),\quad M\leftarrow\bar\mu M-\sum_{t\in\text{chunk}}\eta_t\nabla\langle f(W_\xi;k_t),v_t\rangle,"
        r"\quad W\leftarrow\|W_0\|\frac{W-\mathrm{NS}_5(M)}{\|W-\mathrm{NS}_5(M)\|}",
        spec=MirasSpec.make(
            architecture={"name": "gated_mlp", "expansion": 1},
            bias="dot",
            retention={"name": "weight_norm", "decays": False},
            algorithm={"name": "chunk_step", "newton_schulz": "lact", "max_lr": 0.02, "per": "weight"},
            chunk_size=2048,
            read="anchor",
            step_bound=None,
        ),
        around=Surroundings(conv=0, output_gate=False),
        note="Tokens read the weights before their chunk, and a chunk that is not complete is never written. Every matrix has its "
        "own rates, which start at 0.001. The layer adds attention over a sliding window of 2048; this is the other half. Norms "
        "are of the weights into a unit, with a floor where the code adds 1e-5. algorithm={'newton_schulz': 'none'} is plain "
        "momentum, retention={'form': 'pre'} keeps a master copy that is not normalised.",
    ),
)
