"""The papers the library and its components come from, and which of them a docstring names."""

from __future__ import annotations

import re
from typing import NamedTuple


class Paper(NamedTuple):
    """An entry of the bibliography.

    Attributes:
        key: a short name; also the BibTeX key.
        title: as printed.
        authors: given names first, separated by commas.
        year: of the first version.
    """

    key: str
    title: str
    authors: str
    year: int

    def bibtex(self, arxiv: str) -> str:
        """The BibTeX entry of this paper, which has that arXiv number."""
        fields = {
            "title": f"{{{self.title}}}",  # a second pair of braces keeps capitals
            "author": self.authors.replace(", ", " and "),
            "year": str(self.year),
            "eprint": arxiv,
            "archiveprefix": "arXiv",
            "url": url(arxiv),
        }
        return "\n".join([f"@misc{{{self.key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])


FRAMEWORK = "2504.13173"
"""The paper of the design space itself."""

PAPERS: dict[str, Paper] = {
    "1706.03762": Paper(
        "attention",
        "Attention Is All You Need",
        r"Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, {\L}ukasz Kaiser, "
        "Illia Polosukhin",
        2017,
    ),
    "1804.00325": Paper(
        "aggmo",
        "Aggregated Momentum: Stability Through Passive Damping",
        "James Lucas, Shengyang Sun, Richard Zemel, Roger Grosse",
        2018,
    ),
    "1810.06801": Paper("qhm", "Quasi-hyperbolic momentum and Adam for deep learning", "Jerry Ma, Denis Yarats", 2018),
    "1812.01243": Paper(
        "efficient_attention",
        "Efficient Attention: Attention with Linear Complexities",
        "Zhuoran Shen, Mingyuan Zhang, Haiyu Zhao, Shuai Yi, Hongsheng Li",
        2018,
    ),
    "2006.16236": Paper(
        "linear_attention",
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        r"Angelos Katharopoulos, Apoorv Vyas, Nikolaos Pappas, Fran\c{c}ois Fleuret",
        2020,
    ),
    "2009.14794": Paper(
        "performer",
        "Rethinking Attention with Performers",
        "Krzysztof Choromanski, Valerii Likhosherstov, David Dohan, Xingyou Song, Andreea Gane, Tamas Sarlos, "
        "Peter Hawkins, Jared Davis, Afroz Mohiuddin, Lukasz Kaiser, David Belanger, Lucy Colwell, Adrian Weller",
        2020,
    ),
    "2102.11174": Paper(
        "fast_weight_programmers",
        "Linear Transformers Are Secretly Fast Weight Programmers",
        r"Imanol Schlag, Kazuki Irie, J\"urgen Schmidhuber",
        2021,
    ),
    "2210.04243": Paper(
        "dfw",
        "Fine-Tuning Pre-trained Transformers into Decaying Fast Weights",
        "Huanru Henry Mao",
        2022,
    ),
    "2307.08621": Paper(
        "retnet",
        "Retentive Network: A Successor to Transformer for Large Language Models",
        "Yutao Sun, Li Dong, Shaohan Huang, Shuming Ma, Yuqing Xia, Jilong Xue, Jianyong Wang, Furu Wei",
        2023,
    ),
    "2311.04823": Paper(
        "hgrn",
        "Hierarchically Gated Recurrent Neural Network for Sequence Modeling",
        "Zhen Qin, Songlin Yang, Yiran Zhong",
        2023,
    ),
    "2312.00752": Paper(
        "mamba",
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        "Albert Gu, Tri Dao",
        2023,
    ),
    "2312.06635": Paper(
        "gla",
        "Gated Linear Attention Transformers with Hardware-Efficient Training",
        "Songlin Yang, Bailin Wang, Yikang Shen, Rameswar Panda, Yoon Kim",
        2023,
    ),
    "2401.04658": Paper(
        "lightning_attention",
        "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models",
        "Zhen Qin, Weigao Sun, Dong Li, Xuyang Shen, Weixuan Sun, Yiran Zhong",
        2024,
    ),
    "2404.05892": Paper(
        "rwkv6",
        "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
        "Bo Peng, Daniel Goldstein, Quentin Anthony, Alon Albalak, Eric Alcaide, Stella Biderman, Eugene "
        r"Cheah, Xingjian Du, Teddy Ferdinan, Haowen Hou, Przemys\law Kazienko, Kranthi Kiran GV, Jan Koco\'n, "
        r"Bart\lomiej Koptyra, Satyapriya Krishna, Ronald McClelland Jr., Jiaju Lin, Niklas Muennighoff, Fares "
        r"Obeid, Atsushi Saito, Guangyu Song, Haoqin Tu, Cahya Wirawan, Stanis\law Wo\'zniak, Ruichong Zhang, "
        "Bingchen Zhao, Qihang Zhao, Peng Zhou, Jian Zhu, Rui-Jie Zhu",
        2024,
    ),
    "2404.07904": Paper(
        "hgrn2",
        "HGRN2: Gated Linear RNNs with State Expansion",
        "Zhen Qin, Songlin Yang, Weixuan Sun, Xuyang Shen, Dong Li, Weigao Sun, Yiran Zhong",
        2024,
    ),
    "2405.21060": Paper(
        "mamba2",
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
        "Tri Dao, Albert Gu",
        2024,
    ),
    "2406.06484": Paper(
        "deltanet",
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
        "Songlin Yang, Bailin Wang, Yu Zhang, Yikang Shen, Yoon Kim",
        2024,
    ),
    "2407.04620": Paper(
        "ttt",
        "Learning to (Learn at Test Time): RNNs with Expressive Hidden States",
        "Yu Sun, Xinhao Li, Karan Dalal, Jiarui Xu, Arjun Vikram, Genghan Zhang, Yann Dubois, Xinlei Chen, "
        "Xiaolong Wang, Sanmi Koyejo, Tatsunori Hashimoto, Carlos Guestrin",
        2024,
    ),
    "2407.14207": Paper(
        "longhorn",
        "Longhorn: State Space Models are Amortized Online Learners",
        "Bo Liu, Rui Wang, Lemeng Wu, Yihao Feng, Peter Stone, Qiang Liu",
        2024,
    ),
    "2409.07146": Paper(
        "gsa",
        "Gated Slot Attention for Efficient Linear-Time Sequence Modeling",
        "Yu Zhang, Songlin Yang, Ruijie Zhu, Yue Zhang, Leyang Cui, Yiqiao Wang, Bolun Wang, Freda Shi, Bailin Wang, "
        "Wei Bi, Peng Zhou, Guohong Fu",
        2024,
    ),
    "2412.06464": Paper(
        "gated_deltanet",
        "Gated Delta Networks: Improving Mamba2 with Delta Rule",
        "Songlin Yang, Jan Kautz, Ali Hatamizadeh",
        2024,
    ),
    "2501.00663": Paper(
        "titans",
        "Titans: Learning to Memorize at Test Time",
        "Ali Behrouz, Peilin Zhong, Vahab Mirrokni",
        2024,
    ),
    "2501.12352": Paper(
        "test_time_regression",
        "Test-time regression: a unifying framework for designing sequence models with associative memory",
        "Ke Alexander Wang, Jiaxin Shi, Emily B. Fox",
        2025,
    ),
    "2502.10297": Paper(
        "deltaproduct",
        "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products",
        "Julien Siems, Timur Carstensen, Arber Zela, Frank Hutter, Massimiliano Pontil, Riccardo Grazzi",
        2025,
    ),
    "2503.14456": Paper(
        "rwkv7",
        "RWKV-7 ``Goose'' with Expressive Dynamic State Evolution",
        "Bo Peng, Ruichong Zhang, Daniel Goldstein, Eric Alcaide, Xingjian Du, Haowen Hou, Jiaju Lin, Jiaxing Liu, "
        "Janna Lu, William Merrill, Guangyu Song, Kaifeng Tan, Saiteja Utpala, Nathan Wilce, Johan S. Wind, Tianyi Wu, "
        "Daniel Wuttke, Christian Zhou-Zheng",
        2025,
    ),
    "2504.05646": Paper(
        "lattice",
        "Lattice: Learning to Efficiently Compress the Memory",
        "Mahdi Karami, Razvan Pascanu, Vahab Mirrokni",
        2025,
    ),
    FRAMEWORK: Paper(
        "miras",
        "It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
        "Optimization",
        "Ali Behrouz, Meisam Razaviyayn, Peilin Zhong, Vahab Mirrokni",
        2025,
    ),
    "2505.23735": Paper(
        "atlas",
        "ATLAS: Learning to Optimally Memorize the Context at Test Time",
        "Ali Behrouz, Zeman Li, Praneeth Kacham, Majid Daliri, Yuan Deng, Peilin Zhong, Meisam Razaviyayn, "
        "Vahab Mirrokni",
        2025,
    ),
    "2505.23884": Paper(
        "lact",
        "Test-Time Training Done Right",
        "Tianyuan Zhang, Sai Bi, Yicong Hong, Kai Zhang, Fujun Luan, Songlin Yang, Kalyan Sunkavalli, "
        "William T. Freeman, Hao Tan",
        2025,
    ),
    "2506.02475": Paper(
        "comba",
        "Comba: Improving Bilinear RNNs with Closed-loop Control",
        "Jiaxi Hu, Yongqi Pan, Jusen Du, Disen Lan, Xiaqiang Tang, Qingsong Wen, Yuxuan Liang, Weigao Sun",
        2025,
    ),
    "2506.05233": Paper(
        "mesanet",
        "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training",
        "Johannes von Oswald, Nino Scherrer, Seijin Kobayashi, Luca Versari, Songlin Yang, Maximilian Schlegel, "
        "Kaitlin Maile, Yanick Schimpf, Oliver Sieberling, Alexander Meulemans, Rif A. Saurous, Guillaume Lajoie, "
        r"Charlotte Frenkel, Razvan Pascanu, Blaise {Ag\"uera y Arcas}, Jo\~ao Sacramento",
        2025,
    ),
    "2510.26692": Paper(
        "kda",
        "Kimi Linear: An Expressive, Efficient Attention Architecture",
        "{Kimi Team}",
        2025,
    ),
    "2511.07343": Paper(
        "tnt",
        "TNT: Improving Chunkwise Training for Test-Time Memorization",
        "Zeman Li, Ali Behrouz, Yuan Deng, Peilin Zhong, Praneeth Kacham, Mahdi Karami, Meisam Razaviyayn, "
        "Vahab Mirrokni",
        2025,
    ),
    "2512.23852": Paper(
        "trellis",
        "Trellis: Learning to Compress Key-Value Memory in Attention Models",
        "Mahdi Karami, Ali Behrouz, Praneeth Kacham, Vahab Mirrokni",
        2025,
    ),
    "2512.24695": Paper(
        "nested_learning",
        "Nested Learning: The Illusion of Deep Learning Architectures",
        "Ali Behrouz, Meisam Razaviyayn, Peilin Zhong, Vahab Mirrokni",
        2025,
    ),
}
"""Every paper by its arXiv number."""


def named_in(text: str) -> list[str]:
    """The arXiv numbers in a text, in order, each once.

    Example:
        >>> named_in("Source: Titans (2501.00663) Eq. 13; MIRAS (arXiv 2504.13173) Table 1, again 2501.00663.")
        ['2501.00663', '2504.13173']
    """
    return list(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text)))


def url(arxiv: str) -> str:
    """Where to read it."""
    return f"https://arxiv.org/abs/{arxiv}"


def cite(arxiv: str) -> str:
    """BibTeX of a paper, or a comment that says where it is."""
    return PAPERS[arxiv].bibtex(arxiv) if arxiv in PAPERS else f"% arXiv:{arxiv} is at {url(arxiv)}"
