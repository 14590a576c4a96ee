"""Hebbian memories: they add what they see and never look at what is there."""

from typing import Any

from miras import MirasSpec, Surroundings
from miras.ties import Bonus, Complement, Constant, Discretised, Normalised, Outer, Schedule
from zoo._entry import Entry


def _spec(**fields: Any) -> MirasSpec:
    """Gradients of a dot product do not depend on the anchor, so the chunk size here is a matter of speed only."""
    usual = {"architecture": "matrix", "bias": "dot", "algorithm": "gd", "chunk_size": 64, "step_bound": None}
    return MirasSpec.make(**usual | fields)


ONE = Constant("lr", 1.0)
"""What is added is added whole."""

BY_KEY = {"name": "l2", "per": "key"}
BY_ENTRY = {"name": "l2", "per": "entry"}

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="linear_attention",
        title="Linear attention",
        paper="2006.16236",
        recurrence=r"W_t=W_{t-1}+v_t\phi(k_t)^\top,\quad z_t=z_{t-1}+\phi(k_t),\quad "
        r"y_t=\frac{W_t\phi(q_t)}{z_t^\top\phi(q_t)}",
        spec=_spec(architecture={"name": "feature_map", "kind": "elu"}, retention="none"),
        around=Surroundings(
            conv=0,
            activation="identity",
            qk_norm=False,
            output_norm=False,
            output_gate=False,
            zero_start=True,
            ties=(Normalised(), ONE),
        ),
        note="The normaliser z is one more column of values, all ones. architecture={'kind': ...} changes the feature map; "
        "Surroundings without Normalised() leaves the answer unnormalised, as most descendants do.",
    ),
    Entry(
        name="retnet",
        title="RetNet",
        paper="2307.08621",
        recurrence=r"W_t=\gamma_hW_{t-1}+v_tk_t^\top,\quad \gamma_h=1-2^{-5-h}",
        spec=_spec(retention="l2"),
        around=Surroundings(
            conv=0,
            activation="identity",
            qk_norm=False,
            zero_start=True,
            ties=(Schedule("retnet"), ONE),
        ),
        note="The rotation of queries and keys (xPos) and the scale of the queries are left to the layer.",
    ),
    Entry(
        name="lightning_attention",
        title="Lightning Attention",
        paper="2401.04658",
        recurrence=r"W_t=\gamma_hW_{t-1}+v_tk_t^\top,\quad \gamma_h=e^{-\frac{8h}{H}(1-\lambda)}",
        spec=_spec(retention="l2"),
        around=Surroundings(
            conv=0, activation="silu", qk_norm=False, zero_start=True, ties=(Schedule("lightning"), ONE)
        ),
        note="The paper's algorithm is one of tiles, exact for any fixed decay; the schedule is that of the models it "
        "trains, with h from 0. Schedule('lightning', depth=l / L) sets how far up the layer is.",
    ),
    Entry(
        name="gla",
        title="Gated linear attention",
        paper="2312.06635",
        recurrence=r"W_t=W_{t-1}\mathrm{Diag}(\alpha_t)+v_tk_t^\top",
        spec=_spec(retention=BY_KEY),
        around=Surroundings(conv=0, activation="identity", qk_norm=False, zero_start=True, ties=(ONE,)),
        note="The paper's gate is a sigmoid to the power 1/16; ours starts at 0.99.",
    ),
    Entry(
        name="mamba2",
        title="Mamba-2",
        paper="2405.21060",
        recurrence=r"W_t=\alpha_tW_{t-1}+\Delta_tv_tk_t^\top,\quad \alpha_t=e^{-e^A\Delta_t}",
        spec=_spec(retention="l2"),
        around=Surroundings(qk_norm=False, zero_start=True, ties=(Discretised("head"),)),
        note="v, k, q are the paper's x, B, C. The skip D x is left to the layer.",
    ),
    Entry(
        name="mamba",
        title="Mamba",
        paper="2312.00752",
        recurrence=r"W_{t,oi}=e^{-e^{A_{oi}}\Delta_{t,o}}W_{t-1,oi}+\Delta_{t,o}v_{t,o}k_{t,i}",
        spec=_spec(retention=BY_ENTRY, algorithm={"name": "gd", "per": "value"}, chunk_size=16),
        around=Surroundings(qk_norm=False, zero_start=True, ties=(Discretised("entry"),)),
        note="v, k, q are the paper's x, B, C, and the width of keys is its state size N. The input takes the Euler step of "
        "the released code. MIRAS calls this memory a vector; it is one vector of N numbers for each value channel.",
    ),
    Entry(
        name="dfw",
        title="Decaying fast weights",
        paper="2210.04243",
        recurrence=r"W_t=W_{t-1}\odot(b_ta_t^\top)+v_tk_t^\top",
        spec=_spec(retention=BY_ENTRY, chunk_size=16),
        around=Surroundings(conv=0, activation="identity", qk_norm=False, zero_start=True, ties=(Outer(), ONE)),
        note="a decays key channels and b value channels.",
    ),
    Entry(
        name="hgrn",
        title="HGRN",
        paper="2311.04823",
        recurrence=r"w_t=f_t\odot w_{t-1}+(1-f_t)\odot v_t,\quad y_t=q_t\odot w_t",
        spec=_spec(architecture="vector", retention=BY_KEY),
        around=Surroundings(conv=0, qk_norm=False, output_gate=False, zero_start=True, ties=(Complement(), ONE)),
        note="The query is the paper's output gate. Its lower bound on f, which rises from layer to layer, and its rotation "
        "by a fixed phase are left to the layer.",
    ),
    Entry(
        name="hgrn2",
        title="HGRN2",
        paper="2404.07904",
        recurrence=r"W_t=W_{t-1}\mathrm{Diag}(f_t)+v_t(1-f_t)^\top",
        spec=_spec(retention=BY_KEY),
        around=Surroundings(conv=0, qk_norm=False, output_gate=False, zero_start=True, ties=(Complement(), ONE)),
        note="The lower bound on f, which rises from layer to layer, is left to the layer.",
    ),
    Entry(
        name="rwkv6",
        title="RWKV-6",
        paper="2404.05892",
        recurrence=r"y_t=\big(W_{t-1}+v_t(u\odot k_t)^\top\big)q_t,\quad W_t=W_{t-1}\mathrm{Diag}(w_t)+v_tk_t^\top",
        spec=_spec(retention=BY_KEY, read="previous"),
        around=Surroundings(conv=0, activation="identity", qk_norm=False, zero_start=True, ties=(Bonus(), ONE)),
        note="Token shift is left to the layer. The paper's decay is exp(-exp(.)); any decay in (0, 1) is within reach.",
    ),
    Entry(
        name="dla",
        title="Deep linear attention",
        paper="2505.23735",
        recurrence=r"W_t=\alpha_tW_{t-1}+\eta_t\nabla_W\langle\mathcal M(W_{t-1};k_t),v_t\rangle",
        spec=_spec(architecture={"name": "mlp", "norm": False}, retention="l2", chunk_size=16),
        recommended={"step_bound": 1.0},
        note="Eq. 19 of ATLAS, whose loss has its sign the wrong way round in print. The paper's chunk size is not published. "
        "A dot product rewards growth without end, so a deep memory needs the decay; the recommended form also bounds the step.",
    ),
    Entry(
        name="swla",
        title="Sliding-window linear attention",
        paper="2505.23735",
        recurrence=r"W_t=\alpha_tW_{t-1}+\sum_{i=t-c+1}^t\gamma_iv_ik_i^\top",
        spec=_spec(retention="l2", algorithm={"name": "omega", "size": 4}),
        around=Surroundings(ties=(ONE,), zero_start=True),
        note="Eq. 20 of ATLAS; every pair is added as many times as its window is long. The window c of the paper's models is "
        "not published.",
    ),
)
