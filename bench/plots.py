"""The four plots, from the rows of result files; PNG, readable in grey print and without telling red from green.

Every curve has a colour of Okabe and Ito's palette, a marker and a dash of its own. A plot carries the digest of the
rows that it was drawn from, so that a test can tell whether it is the plot of the files beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import write_atomically

Rows = Sequence[dict[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
STYLE: Any = {"font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
DIGEST = "vilt_fast rows"  # key of the PNG's text


def digest(rows: Rows) -> str:
    """Of the figures that the plots show."""
    names = ("suite", "workload", "scope", "contestant", "dtype", "batch", "tokens", "status", "error", "median_ms")
    content = [[row.get(name) for name in names] for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write(draw: Callable[[Any, Rows], None], wanted: Callable[[dict[str, Any]], Any], rows: Rows, path: Path) -> bool:
    """Draw the timed rows that are wanted and write the PNG; False: there is nothing to draw.

    Raises:
        ValueError: matplotlib is not installed.
    """
    timed = [row for row in rows if row["status"] == "ok" and row["median_ms"] and wanted(row)]
    if not timed:
        return False
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib, which is not installed: pip install 'vilt_fast[plot]'") from error
    metadata = {DIGEST: digest(rows), "Software": None}
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure, timed)
        for axes in figure.axes:
            _plain_ticks(axes)
        write_atomically(path, lambda file: figure.savefig(file, dpi=160, format="png", metadata=metadata))
    return True


def _plain_ticks(axes: Any) -> None:
    """Numbers as they are read, 1,300 and not 1.3 x 10^3, on log axes too short for powers of ten."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log" and low > 0 and high / low < 30:
            for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
                set_formatter(lambda value, _: f"{value:,g}")


def _style(index: int) -> dict[str, Any]:
    kinds = {"color": COLOURS[index % 8], "marker": MARKERS[index % 8], "linestyle": DASHES[index // 2 % 4]}
    return {**kinds, "markersize": 5, "linewidth": 1.4}


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(label(row) for row in rows))


def label(row: dict[str, Any]) -> str:
    """What a curve is called."""
    return row["contestant"] + (", encoder alone" if row["scope"] == "encoder" else "")


def _caption(rows: Rows) -> str:
    row = rows[0]
    return f"{row.get('device')}, torch {row.get('torch')}, {row.get('dtype')}, {row.get('commit')}"


def _waterfall(figure: Any, timed: Rows) -> None:
    """Pairs/s after each switch of the ablation, with the error at the bar's end."""
    figure.set_size_inches(7, 0.42 * len(timed) + 1.2)
    axes = figure.subplots()
    speed = [row["pairs_per_s"] for row in timed]
    before = [0.0, *speed[:-1]]
    for place, (row, value, last) in enumerate(zip(timed, speed, before, strict=True)):
        axes.barh(place, value, color="#B8CDE0", edgecolor="black", linewidth=0.6)
        if place:  # what this switch bought, or cost, hatched so that print shows it
            low, high = sorted((value, last))
            colour, hatch = (COLOURS[0], None) if value >= last else (COLOURS[1], "///")
            axes.barh(place, high - low, left=low, color=colour, edgecolor="black", linewidth=0.6, hatch=hatch)
        text = f"{value:,.0f}, " + (f"x {value / last:.2f}, " if place else "") + f"error {row['error']:.1e}"
        axes.text(max(value, last) * 1.01, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(timed)), [row["contestant"] for row in timed])
    axes.invert_yaxis()
    title = f"One switch at a time, B={timed[0]['batch']}\n{_caption(timed)}"
    label = "pairs/s (blue: gained by this step; hatched: lost)"
    axes.set(xlim=(0, max(speed) * 1.45), xlabel=label, title=title)


def _roofline(figure: Any, timed: Rows) -> None:
    """TFLOP/s against FLOPs a byte, under the measured peaks."""
    figure.set_size_inches(7, 4.6)
    axes = figure.subplots()
    peak = max(row["tflops"] / row["matmul_share"] for row in timed)
    copy = max(row["gbps"] / row["copy_share"] for row in timed) / 1e3  # TB/s
    intensity = [1e3 * row["tflops"] / row["gbps"] for row in timed]
    low, high = min(*intensity, peak / copy) / 2, max(*intensity, peak / copy) * 2
    roof = [low, peak / copy, high]
    axes.plot(roof, [min(peak, copy * x) for x in roof], color="black", linewidth=1.6)
    axes.annotate(f"matmul {peak:.3g} TFLOP/s", (high, peak), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"copy {copy:.3g} TB/s", (low, copy * low), ha="left", va="bottom", fontsize=8)
    for index, name in enumerate(_names(timed)):
        mine = [(x, row["tflops"]) for x, row in zip(intensity, timed, strict=True) if label(row) == name]
        style = {key: _style(index)[key] for key in ("color", "marker")}
        axes.scatter(*zip(*mine, strict=True), s=26, label=name, edgecolors="black", linewidths=0.4, **style)
    for x, row in zip(intensity, timed, strict=True):
        if row["scope"] == "operation" and row["is_ours"]:
            text = f"{row['workload']}, B={row['batch']}"
            axes.annotate(text, (x, row["tflops"]), fontsize=6, textcoords="offset points", xytext=(5, -2))
    axes.set(xscale="log", yscale="log", xlabel="useful FLOPs a byte that must move", ylabel="useful TFLOP/s")
    axes.set_title(f"Roofline\n{_caption(timed)}")
    axes.legend(fontsize=7, loc="lower right")


def _has_intensity(row: dict[str, Any]) -> bool:
    is_part = row["suite"] in ("ops", "model") and row["scope"] in ("operation", "encoder")
    return is_part and bool(row["tflops"] and row["gbps"])


PANELS = {
    "vqa-mix": ("pairs a batch", lambda row: row["batch"]),
    "spread": ("rows of the padded batch / tokens", lambda row: row["padded_tokens"] / row["tokens"]),
    "patches": ("tokens a pair", lambda row: row["tokens"] / row["batch"]),
}


def _scaling(figure: Any, timed: Rows) -> None:
    """Time per token against batch, spread of lengths and patches per image."""
    figure.set_size_inches(10, 3.8)
    panels = figure.subplots(1, 3, sharey=True)
    names = _names(timed)
    for axes, (kind, (what, value)) in zip(panels, PANELS.items(), strict=True):
        for index, name in enumerate(names):
            mine = [row for row in timed if row["workload"].startswith(kind) and label(row) == name]
            points = sorted((value(row), 1e6 * row["median_ms"] / row["tokens"]) for row in mine)
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **_style(index))
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel=what)
    panels[0].set_ylabel("nanoseconds a token (lower is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=3)
    figure.suptitle(f"Scaling: {_caption(timed)}", fontsize=9)


def _fastest_names(rows: Rows, each: int = 4) -> list[str]:
    """The fastest of ours and of the peers, so many each: more curves than colours cannot be told apart."""
    chosen: list[str] = []
    for is_ours in (False, True):
        mine = sorted((row for row in rows if row["is_ours"] == is_ours), key=lambda row: -row["pairs_per_s"])
        chosen += _names(mine)[:each]
    # What a user of transformers gets is what the others are compared with.
    eager = [name for name in _names(rows) if name == "transformers eager" and name not in chosen]
    return [*eager, *chosen][: len(COLOURS)]


def _latency(figure: Any, timed: Rows) -> None:
    """Pairs/s against milliseconds, a point per batch size of vqa-mix."""
    timed = [row for row in timed if row["dtype"] == timed[-1]["dtype"]]
    figure.set_size_inches(7, 5.2)
    axes = figure.subplots()
    for index, name in enumerate(_fastest_names(timed)):
        mine = {row["batch"]: row for row in timed if label(row) == name}
        points = [(mine[batch]["median_ms"], mine[batch]["pairs_per_s"]) for batch in sorted(mine)]
        axes.plot(*zip(*points, strict=True), label=name, **_style(index))
        axes.annotate(f"B={max(mine)}", points[-1], fontsize=6, textcoords="offset points", xytext=(4, 3))
    axes.set(xscale="log", yscale="log", xlabel="milliseconds a batch", ylabel="pairs/s")
    axes.set_title(f"Latency against throughput, vqa-mix\n{_caption(timed)}")
    axes.legend(fontsize=6, loc="best")


def _is_vqa_mix(row: dict[str, Any]) -> bool:
    return row["suite"] in ("model", "latency") and row["workload"] == "vqa-mix"


# From all rows and a path to a PNG, see `_write`.
PLOTS: dict[str, Callable[[Rows, Path], bool]] = {
    "waterfall": partial(_write, _waterfall, lambda row: row["suite"] == "ablate"),
    "roofline": partial(_write, _roofline, _has_intensity),
    "scaling": partial(_write, _scaling, lambda row: row["suite"] == "scaling"),
    "latency": partial(_write, _latency, _is_vqa_mix),
}
