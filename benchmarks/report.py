"""The measurements as a page: tables, and plots where matplotlib is there."""

from pathlib import Path
from typing import Any

PAGE = "README.md"
_NOTE = """\
Requests ask for one image as a PNG, closed loop, kept-alive connections, a fresh seed each, by
`wrk` on the same cores. *Ceiling* is the same work without HTTP: as many single-threaded processes
as cores that draw noise, run batches of the best size and encode every image as a PNG. *Plain
handler* is `benchmarks/naive.py`: FastAPI, one uvicorn worker per core, `async def`, no batching,
run inline, PNG by Pillow. Every figure is the median of interleaved rounds.
"""


def write_report(measured: dict[str, Any], folder: Path) -> None:
    """Write `README.md`, and `clients.png` if matplotlib is installed.

    Args:
        measured: What `benchmarks.__main__` measured.
        folder: Where to write.
    """
    medians = measured["medians"]
    ceiling = max(medians["ceilings"]["pipeline"].values())
    parts = [
        "# Benchmarks",
        f"{measured['date']}, {measured['machine']}, Python {measured['python']}, "
        f"`{measured['command']}`, median of {measured['rounds']} rounds.",
        f"## {measured['gan']}, one image per request",
        _NOTE,
        _clients_table(medians, ceiling),
        _alone(medians),
        "### By processes",
        "64 clients; each process has one thread.",
        _processes_table(medians, ceiling),
        "## Many images per request",
        "Images per second, 8 clients, npy answers.",
        _images_table(medians),
        f"n = 64, 8 clients, requests/s × 64: npy {64 * medians['ours']['npy']['rate']:,.0f}, "
        f"one PNG grid {64 * medians['ours']['png']['rate']:,.0f} images/s "
        f"(ceiling with one PNG per image: {ceiling:,.0f}).",
        "## Scoring",
        _scoring(measured),
        "## ONNX Runtime alone",
        "`session.run` on all cores, inputs in memory, images/s by batch size.",
        _raw_table(medians),
        "## Start and memory",
        f"Ready after {medians['ours']['ready_s']:.2f} s. Memory of all processes (PSS): "
        f"{medians['ours']['idle_bytes'] / 1e6:.0f} MB before the first request, "
        f"{medians['ours']['memory_bytes'] / 1e6:.0f} MB after sampling, "
        f"{medians['ours']['scoring_bytes'] / 1e6:.0f} MB after scoring 1,000 images at a time.",
    ]
    if _plot(measured, folder):
        parts.append("![Requests per second and latency by clients](clients.png)")
    (folder / PAGE).write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _clients_table(medians: dict[str, Any], ceiling: float) -> str:
    rows = [
        "| clients | ptheta, req/s | of the ceiling | p50 ms | p99 ms | errors "
        "| plain, req/s | p50 ms | p99 ms | ptheta ÷ plain |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for clients, ours in medians["ours"]["one"].items():
        naive = medians["naive"]["one"][clients]
        rows.append(
            f"| {clients} | {ours['rate']:,.0f} | {ours['rate'] / ceiling:.0%} "
            f"| {1e3 * ours['p50']:.2f} | {1e3 * ours['p99']:.1f} | {ours['errors']:.0f} "
            f"| {naive['rate']:,.0f} | {1e3 * naive['p50']:.2f} | {1e3 * naive['p99']:.1f} "
            f"| {ours['rate'] / naive['rate']:.2f} |"
        )
    return "\n".join(rows)


def _alone(medians: dict[str, Any]) -> str:
    ceilings = medians["ceilings"]
    alone = ceilings["pipeline_alone_s"]
    ours = medians["ours"]["one"]["1"]["p50"]
    best = max(ceilings["pipeline"].values())
    return (
        f"Ceiling {best:,.0f} images/s on all cores, "
        f"{ceilings['pipeline_one_core']:,.0f} on one. One image alone, no HTTP: "
        f"{1e3 * alone:.2f} ms; through the service with one client {ours / alone:.2f} × that."
    )


def _processes_table(medians: dict[str, Any], ceiling: float) -> str:
    rows = [
        "| processes | req/s | of the ceiling | p50 ms | p99 ms |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, load in medians["processes"].items():
        rows.append(
            f"| {count} | {load['rate']:,.0f} | {load['rate'] / ceiling:.0%} "
            f"| {1e3 * load['p50']:.2f} | {1e3 * load['p99']:.1f} |"
        )
    return "\n".join(rows)


def _scoring(measured: dict[str, Any]) -> str:
    name, medians = measured["autoregressive"], measured["medians"]
    raw = max(medians["ceilings"]["raw"][f"{name}.log_prob"].values())
    parts = [
        f"{count} per npy body {rate:,.0f} ({rate / raw:.0%} of `session.run` alone)"
        for count, rate in medians["ours"]["scored"].items()
    ]
    return f"`/log_prob` of {name}, images/s: {'; '.join(parts)}."


def _images_table(medians: dict[str, Any]) -> str:
    many = medians["ours"]["many"]
    counts = list(next(iter(many.values())))
    rows = [
        "| model | " + " | ".join(f"n = {count}" for count in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for model, rates in many.items():
        rows.append(f"| {model} | " + " | ".join(f"{rate:,.0f}" for rate in rates.values()) + " |")
    return "\n".join(rows)


def _raw_table(medians: dict[str, Any]) -> str:
    raw = medians["ceilings"]["raw"]
    batches = list(next(iter(raw.values())))
    rows = [
        "| graph | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "| --- |" + " ---: |" * len(batches),
    ]
    for graph, rates in raw.items():
        rows.append(f"| {graph} | " + " | ".join(f"{rate:,.0f}" for rate in rates.values()) + " |")
    return "\n".join(rows)


def _plot(measured: dict[str, Any], folder: Path) -> bool:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415, optional
    except ImportError:
        return False
    medians = measured["medians"]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for name, label in (("ours", "ptheta"), ("naive", "plain handler")):
        by_clients = medians[name]["one"]
        clients = [int(count) for count in by_clients]
        rates.plot(clients, [load["rate"] for load in by_clients.values()], "o-", label=label)
        latencies.plot(
            clients, [1e3 * load["p99"] for load in by_clients.values()], "o-", label=label
        )
    rates.axhline(max(medians["ceilings"]["pipeline"].values()), ls="--", c="grey", label="ceiling")
    rates.set(xlabel="clients", ylabel="images per second", xscale="log", ylim=0)
    latencies.set(xlabel="clients", ylabel="p99, ms", xscale="log", yscale="log")
    rates.legend()
    figure.savefig(folder / "clients.png", dpi=120)
    return True
