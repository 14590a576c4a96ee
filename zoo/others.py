"""Slots, shards, stacks, and attention itself."""

from miras import MirasSpec, Surroundings
from miras.ties import Constant
from zoo._entry import Entry
from zoo.modules import TNT, Coded, Hope, OwnGates, SoftmaxAttention, Trellis

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="softmax_attention",
        title="Softmax attention",
        paper="1706.03762",
        recurrence=r"y_t=\arg\min_z\sum_{i\le t}e^{q_t^\top k_i/\sqrt d}\|v_i-z\|^2=\sum_{i\le t}"
        r"\mathrm{softmax}_i\big(q_t^\top k_i/\sqrt d\big)v_i",
        spec=MirasSpec.make(
            architecture={"name": "feature_map", "kind": "taylor"},
            bias="dot",
            retention="none",
            algorithm="gd",
            chunk_size=64,
            step_bound=None,
        ),
        around=Surroundings(
            conv=0,
            activation="identity",
            qk_norm=False,
            output_norm=False,
            output_gate=False,
            ties=(Constant("lr", 1.0),),
        ),
        note="The state grows with the sequence. The spec is the recurrence of which attention is the limit, as the degree of "
        "the features grows (with its answers normalised). Positions are left to the layer.",
        build=SoftmaxAttention,
    ),
    Entry(
        name="lattice",
        title="Lattice",
        paper="2504.05646",
        recurrence=r"s_{t,i}=s_{t-1,i}-\eta_t\frac{c_{t,i}}{\|s_{t-1,i}\|}(I-\hat s_{t-1,i}\hat s_{t-1,i}^\top)"
        r"\Big(\sum_jc_{t,j}\hat s_{t-1,j}-v_t\Big),\quad \hat s=s/\|s\|,\ c_t=\mathrm{softmax}(k_t)",
        spec=MirasSpec.make(
            architecture="slots",
            bias="l2",
            retention="orthogonal",
            algorithm="gd",
            chunk_size=16,
            step_bound=None,
        ),
        recommended={"step_bound": 1.0},
        note="Derived, not transcribed: the paper's printed equations we have not seen. From its description: a dictionary of "
        "slots, and writes orthogonal to their slot in place of a forget gate. Derived here, by differentiating half the "
        "squared error of decoding with normalised slots: the step, its projection and its division by the slot's length. "
        "Chosen here: that loss, the softmax that makes a code of a key, reading by the code of the query, the learning rate, "
        "and chunks with gradients at their start. Slots can only grow, so there is no decay. Recommended: bounded steps.",
    ),
    Entry(
        name="trellis",
        title="Trellis",
        paper="2512.23852",
        recurrence=r"S^k_t=\alpha_tS^k_{t-1}-\eta_t(S^k_{t-1}k_t-\hat k_t)k_t^\top,\ c_t=\phi(S^k_tk_t),\quad "
        r"S^v_t=\alpha_tS^v_{t-1}-\eta_t(S^v_{t-1}c_t-v_t)c_t^\top,\quad y_t=S^v_t\phi(S^k_tq_t)",
        spec=MirasSpec.make(
            architecture="matrix",
            bias="l2",
            retention="l2",
            algorithm={"name": "gd", "max_lr": 0.1},
            chunk_size=16,
            step_bound=None,
        ),
        around=Surroundings(ties=(Coded(),)),
        recommended={"algorithm": {"max_lr": 1.0}, "step_bound": 1.0},
        note="A third party's reading, not the paper's text: we have not seen Eq. 13-14 in print. From a public implementation: "
        "two passes, of keys and then of values, the decay of both states, and phi, SiLU scaled to the root of its width. "
        "There, the first pass maps the layer's input to the key. Chosen here: it maps the key of a head to a learned map of "
        "it; rates and decays, shared by both passes, as many slots as a key has channels, and the chunk size. "
        "Recommended: bounded steps.",
        build=Trellis,
    ),
    Entry(
        name="tnt",
        title="TNT",
        paper="2511.07343",
        recurrence=r"y_t=f(V_\xi;q_t)+\sum_if(W^i_t;\Pi_tq_t),\quad V_{\xi+C}=V_\xi-\sum_{t=\xi+1}^{\xi+C}\eta_t\nabla\ell(V_\xi;k_t,v_t),"
        r"\quad \Pi_t=\Pi_{t-1}+\frac{k_tk_t^\top}{\|k_t\|^2}",
        spec=MirasSpec.make(
            architecture="mlp",
            bias={"name": "l2", "half": False},
            retention="none",
            algorithm={"name": "gd", "max_lr": 0.1},
            chunk_size=2048,
            read="anchor",
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "algorithm": {"max_lr": 1.0}, "step_bound": 1.0},
        note="The spec is the global memory's. Local memories, here two with chunks of 8 and 16, return to a learned start with "
        "every shard of 2048 tokens; zoo.modules.TNT takes other sizes. Stage two of training loads the same weights with "
        "smaller local chunks. Eq. 6 prints the previous weights where those of the chunk's start are meant. Recommended: "
        "bounded steps.",
        build=TNT,
    ),
    Entry(
        name="hope",
        title="Hope",
        paper="2512.24695",
        recurrence=r"k_t=\mathcal M_{k,\xi}(x_t),\ \dots,\quad \hat v_{\square,t}=\mathcal M_{\square,\xi}(v_t),\quad "
        r"\mathcal M_{\square,t}=\mathcal M_{\square,t-1}(\alpha_tI-\eta_tk_tk_t^\top)"
        r"-\eta_t\nabla\ell(\mathcal M_{\square,\xi};k_t,\hat v_{\square,t})",
        spec=MirasSpec.make(
            architecture={"name": "mlp", "norm": False},
            bias="l2",
            retention="l2",
            algorithm={"name": "dgd", "max_lr": 0.1},
            chunk_size=16,
            step_bound=None,
        ),
        around=Surroundings(ties=(OwnGates(),)),
        recommended={"step_bound": 1.0},
        note="The factor on the right of Eq. 88 is undefined for a memory of two layers; here every matrix forgets along its own "
        "input, at the anchor. With the squared loss the erasure acts twice, as in Eq. 93; bias='dot' is Eq. 92, whose sign is "
        "wrong in print. All five memories have one chunk size, where the paper has one for the main memory and one for "
        "the rest; momentum, which its ablation mentions, is in no equation. Rates and decays are the squashed mean of the "
        "channels of their memory's answer. The paper leaves open what error a level of the continuum memory accumulates: "
        "here that of the token's value. Two levels of 64 and 512 tokens; zoo.modules.Hope takes others. "
        "Recommended: bounded steps.",
        build=Hope,
    ),
)
