"""Row 1: our layer against titans-pytorch's, and both against the matrix rate of the machine."""

from dataclasses import asdict
from typing import Any

from benchmarks import compare, layer, peers, process, report

OURS, CHUNKED, DEFAULT = "ours", "titans-pytorch batch_size=64", "titans-pytorch default"


def row(threads: int, rounds: int, seconds: float, shape: layer.Shape) -> dict[str, Any]:
    """Measure, print, and return everything measured."""
    options: dict[str, Any] = {"threads": threads, "shape": asdict(shape), "seconds": seconds}

    def ours(mode: str) -> compare.Answer:
        return process.run("ours", mode=mode, **options)

    def chunked(mode: str) -> compare.Answer:
        return peers.run("peer_titans", mode=mode, batch_size=shape.chunk, **options)

    def default(mode: str) -> compare.Answer:
        return peers.run("peer_titans", mode=mode, batch_size=None, **options)

    rate = process.run("matrix_rate", threads=threads, seconds=seconds)
    runs = compare.alternate({OURS: ours, CHUNKED: chunked, DEFAULT: default}, rounds)
    again = process.run("matrix_rate", threads=threads, seconds=seconds)
    rate = {name: max(rate[name], again[name]) for name in rate}

    _print_times(runs, threads)
    _print_ratios(runs)
    _print_rates(runs[OURS], rate)
    return {"shape": asdict(shape), "rate": rate, "runs": runs}


def _print_times(runs: compare.Runs, threads: int) -> None:
    rows = []
    for name, modes in runs.items():
        for mode, answers in modes.items():
            t = compare.times(answers)
            rows.append(
                [
                    name,
                    mode,
                    f"{t['median']:.0f} [{t['low']:.0f}, {t['high']:.0f}]",
                    f"{t['min']:.0f}",
                    f"{max(a['peak'] for a in answers):.0f}",
                    f"{compare.working_set(answers):.0f}",
                    "yes" if all(a["finite"] for a in answers) else "no",
                ]
            )
    header = ["layer", "mode", "ms [quartiles]", "min", "peak MiB", "above imports", "finite"]
    release = runs[DEFAULT]["train"][0]["version"]
    report.table(f"Titans memory, {threads} thread(s), titans-pytorch {release}", header, rows)


def _print_ratios(runs: compare.Runs) -> None:
    rows = []
    for peer, bound in ((CHUNKED, 3.0), (DEFAULT, 1.0)):
        for mode in compare.MODES:
            faster = compare.speedup(runs[peer][mode], runs[OURS][mode])
            smaller = compare.working_set(runs[OURS][mode]) / compare.working_set(runs[peer][mode])
            train = mode == "train"
            rows.append(
                [
                    peer,
                    mode,
                    report.bar(faster["median"], bound) if train else f"{faster['median']:.2f}",
                    f"{faster['least']:.2f} to {faster['most']:.2f}",
                    f"{faster['of minima']:.2f}",
                    report.bar(smaller, 0.25, at_most=True) if train else f"{smaller:.2f}",
                ]
            )
    header = [
        "ours against",
        "mode",
        "times faster",
        "by round",
        "of minima",
        "memory above imports",
    ]
    report.table("Ratios", header, rows)


def _print_rates(ours: dict[str, list[compare.Answer]], rate: dict[str, float]) -> None:
    rows = []
    for mode, answers in ours.items():
        milliseconds = compare.times(answers)["min"]
        counted, executed = (answers[0][key] / 1e6 / milliseconds for key in ("counted", "executed"))
        share = counted / rate["sgemm"]
        rows.append(
            [
                mode,
                f"{answers[0]['counted'] / 1e9:.1f}",
                f"{answers[0]['executed'] / 1e9:.1f}",
                f"{counted:.0f}",
                report.bar(share, 0.5) if mode == "train" else f"{share:.2f}",
                f"{executed / rate['sgemm']:.2f}",
            ]
        )
    header = ["mode", "counted GFLOP", "executed", "counted GFLOP/s", "share of sgemm", "executed"]
    machine = f"sgemm {rate['sgemm']:.0f} GFLOP/s, products of one chunk {rate['chunk']:.0f} GFLOP/s"
    report.table(f"Matrix rate at the best time ({machine})", header, rows)
