"""The README's performance section and the plots, from the result files in bench/results: `make report`.

python -m vilt_fast.bench.report           writes both
python -m vilt_fast.bench.report --check   says what does not match, and fails
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from vilt_fast.bench import results
from vilt_fast.bench.plots import DIGEST, PLOTS, digest
from vilt_fast.checkpoints.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "bench/results"
START = "<!-- performance: made by `make report` from bench/results, do not edit -->"
END = "<!-- performance: end -->"
NOT_MEASURED = "not measured yet"
NO_GPU = f"""On a GPU: {NOT_MEASURED}. `bench/run_gpu.sh --part 1 --out OUT`, and parts 2 to 9, check the kernels,
choose between their variants and run every suite, nine minutes at a time: see [bench/README.md](bench/README.md)."""
HOW = f"""Every contestant had our weights and was checked against the padded reference in fp64 before it was timed.
Times are wall clock from an idle device to an idle device where nothing else is said: the median, and the 20th and 80th
percentile. The files in `{RESULTS}` hold every row, with those that could not run and why."""
VIT = """ViT-B/16, images to logits: squares of 224, images of several sizes that others pad to the largest, and
squares of which half of the patches are dropped, which others cannot; rows that keep every patch there answer another
question ([how](bench/README.md#vit-b16)). `times transformers` is the median of the rounds' ratios."""
VISUAL_BERT = """VisualBERT that answers questions, ids and features of regions to logits: texts of 8 to 60 words with
10 to 36 regions, which others pad to the longest, and texts of 60 with 36, which leave nothing to pad
([how](bench/README.md#visualbert)). `times transformers` is the median of the rounds' ratios."""
# Suites of other families: what stands above their table, and what a second is counted in.
FAMILIES = {"vit": (VIT, "images/s"), "visual_bert": (VISUAL_BERT, "pairs/s")}
EXPORT = """ViLT-B/32 that answers questions, exported once for any batch, words, height and width, pixels to logits.
`mixed` is a batch of images that lie and stand with questions of several lengths, `full` the same with every image and
question as large as the largest: of {full:,} padded rows {mixed:,} are tokens, {share:.2f} of them. What packs computes
those alone, what is exported all: `mixed / full` shows padding's price ([how](bench/README.md#export)). `times live` is
the median of the rounds' ratios."""
CPU_CLOCK = "These are milliseconds of CPU time of one thread, on a machine that others used."
# A row that costs so much more per token than the cheapest smaller one, beyond noise, grows faster than its tokens.
GROWTH = 1.1

Rows = Sequence[dict[str, Any]]


def load(root: Path = ROOT) -> dict[str, list[dict[str, Any]]]:
    """All rows by device, GPUs first; quick runs mean nothing and are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((root / RESULTS).glob("*.json")):
        content = results.read(path)
        environment = content.get("environment", {})
        if environment.get("mode") == "full":
            found.setdefault(environment["device"], []).extend(content["rows"])
    return dict(sorted(found.items(), key=lambda item: (not is_gpu(item[1]), item[0])))


def is_gpu(rows: Rows) -> bool:
    """Whether rows were measured on a GPU."""
    return any(row.get("device_type") == "cuda" for row in rows)


def section(by_device: dict[str, list[dict[str, Any]]], plots: Iterable[str] = ()) -> str:
    """The text between the markers."""
    parts = [] if any(map(is_gpu, by_device.values())) else [NO_GPU]
    for device, rows in by_device.items():
        parts += [f"### {device}", *_device_parts(rows)]
    parts += [f"![{name}]({RESULTS}/{name}.png)" for name in plots]
    return "\n\n".join([*parts, HOW] if by_device else parts)


def _device_parts(rows: Rows) -> list[str]:
    first = rows[0]
    threads = "" if is_gpu(rows) else f", {first['threads']} threads"
    parts = [
        f"torch {first['torch']}, Triton {first['triton']}, transformers {first['transformers']}{threads}; "
        f"commit {', '.join(sorted({row['commit'] for row in rows}))}."
    ]
    for title, suite, scopes in (
        ("Pixels to logits", "model", ("model",)),
        ("Embedded rows to logits, the encoder alone", "model", ("encoder",)),
        ("The same, where the last block computes every row", "model", ("encoder, every row",)),
        ("Decoded pictures to logits", "end-to-end", ("pictures",)),
        ("One batch at a time", "latency", ("model", "encoder")),
    ):
        table = _table([row for row in rows if row["suite"] == suite and row["scope"] in scopes])
        if table:
            parts.append(f"{title}, vqa-mix:\n\n{table}")
    parts += [
        text
        for text in (_others(rows), *_families(rows), *_exports(rows), _waterfall(rows), _growth(rows), _losses(rows))
        if text
    ]
    return parts


def _table(rows: Rows) -> str:
    """Contestants that ran on vqa-mix, the fastest last."""
    timed = [row for row in rows if row["median_ms"] and row["workload"].startswith("vqa-mix")]
    timed = sorted((row for row in timed if "at most" not in row["shape"]), key=itemgetter("batch", "pairs_per_s"))
    lines = []
    for row in timed:
        name = f"**{row['contestant']}**" if row["is_ours"] else row["contestant"]
        spread = _spread(row)
        times, share = _times_transformers(row, timed), f"{100 * row['matmul_share']:.0f} %"
        speed, error = f"{row['pairs_per_s']:.4g}", f"{row['error']:.0e}"
        lines.append((row["batch"], name, row["dtype"], _short(row["median_ms"]), spread, speed, times, share, error))
    head = "B", "contestant", "dtype", "ms", "20 to 80 %", "pairs/s", "times transformers", "of matmul peak", "error"
    return _markdown(head, lines) if lines else ""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ("| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows))
    return "\n".join(lines)


def _times_transformers(row: dict[str, Any], rows: Rows) -> str:
    """Against eager transformers on the same batch in the same dtype and the same run; empty where it did not run."""
    for other in rows:
        same = all(row[name] == other[name] for name in ("batch", "dtype", "scope"))
        if same and other["contestant"] in ("transformers eager", "transformers, PIL processor"):
            return f"{row['pairs_per_s'] / other['pairs_per_s']:.2f}"
    return ""


def _others(rows: Rows) -> str:
    """The fastest of ours beside the fastest peer on the other workloads."""
    lines = []
    for ours, peer in _fastest([row for row in rows if row["suite"] == "model" and row["workload"] != "vqa-mix"]):
        if ours is not None:
            theirs = ("none could be checked", "") if peer is None else (peer["contestant"], _short(peer["median_ms"]))
            mine = itemgetter("workload", "batch", "dtype", "contestant")(ours)
            lines.append((*mine, _short(ours["median_ms"]), *theirs))
    head = ("workload", "B", "dtype", "fastest of ours", "ms", "fastest peer", "ms")
    return "Other workloads, pixels to logits:\n\n" + _markdown(head, lines) if lines else ""


def _families(rows: Rows) -> list[str]:
    return [_family(rows, suite, *texts) for suite, texts in FAMILIES.items()]


def _family(rows: Rows, suite: str, about: str, speed_unit: str) -> str:
    """Contestants from inputs to logits on each workload of a family's suite, the fastest last."""
    timed = [row for row in rows if row["suite"] == suite and row["scope"] == "model" and row["median_ms"]]
    lines = []
    for (workload, batch, _), case in _groups(timed, itemgetter("workload", "batch", "dtype")).items():
        has_transformers = any(row["contestant"] == "transformers eager" for row in case)
        for row in sorted(case, key=itemgetter("pairs_per_s")):
            name = f"**{row['contestant']}**" if row["is_ours"] else row["contestant"]
            times = f"{row['times_first']:.2f}" if has_transformers else ""
            spread = _spread(row)
            speed = f"{row['pairs_per_s']:.3g}"
            lines.append((workload, batch, name, row["dtype"], _short(row["median_ms"]), spread, speed, times))
    head = ("workload", "B", "contestant", "dtype", "ms", "20 to 80 %", speed_unit, "times transformers")
    title = f"{about}\n{CPU_CLOCK}" if any("CPU time" in row["launches"] for row in timed) else about
    return f"{title}\n\n{_markdown(head, lines)}" if lines else ""


def _exports(rows: Rows) -> list[str]:
    """Forms of one model on the ragged batch and on the full one, the fastest on the ragged one last."""
    timed = [row for row in rows if row["suite"] == "export" and row["median_ms"]]
    head = ("B", "form", "dtype", *("mixed, ms", "20 to 80 %", "full, ms", "20 to 80 %"), "mixed / full")
    parts = []
    for batch, group in _groups(timed, itemgetter("batch")).items():
        by_name = _groups(sorted(group, key=itemgetter("workload"), reverse=True), itemgetter("contestant"))
        pairs = [tuple(both) for both in by_name.values() if len(both) == 2]  # mixed, full
        lines = []
        for mixed, full in sorted(pairs, key=lambda both: both[0]["pairs_per_s"]):
            times = [text for row in (mixed, full) for text in (_short(row["median_ms"]), _spread(row))]
            figures = (mixed["median_ms"] / full["median_ms"], mixed["times_first"], full["times_first"])
            name = f"**{mixed['contestant']}**"
            lines.append((batch, name, mixed["dtype"], *times, *(f"{figure:.2f}" for figure in figures)))
        if lines:
            tokens, padded = mixed["tokens"], full["tokens"]
            about = EXPORT.format(mixed=tokens, full=padded, share=tokens / padded)
            table = _markdown((*head, "times live, mixed", "times live, full"), lines)
            parts.append(f"{about}\n\n{table}")
    return parts


def _spread(row: dict[str, Any]) -> str:
    return f"{_short(row['p20_ms'])} to {_short(row['p80_ms'])}"


def _groups(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _fastest(rows: Rows) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """The fastest of ours and of the peers, or None, for each case: the same question in the same dtype."""
    timed = [row for row in rows if row["median_ms"] and row["suite"] != "ablate"]
    cases = _groups(timed, itemgetter("suite", "workload", "scope", "batch", "tokens", "shape", "dtype"))
    found = []
    for case in cases.values():
        ours, peers = ([row for row in case if row["is_ours"] == side] for side in (True, False))
        median = itemgetter("median_ms")
        found.append((min(ours, key=median, default=None), min(peers, key=median, default=None)))
    return found


def _waterfall(rows: Rows) -> str:
    steps = [row for row in rows if row["suite"] == "ablate"]
    if not steps:
        return ""
    lines, last = [], None
    for row in steps:
        if row["median_ms"]:
            times = "" if last is None else f"{last / row['median_ms']:.2f}"
            last = row["median_ms"]
            lines.append((row["contestant"], _short(last), times, f"{row['error']:.0e}", row["note"]))
        else:
            lines.append((row["contestant"], "", "", "", row["status"]))
    table = _markdown(("switch", "ms", "times", "error", ""), lines)
    return f"One switch at a time, B={steps[0]['batch']}:\n\n{table}"


def growth(rows: Rows) -> list[tuple[str, str, str, float]]:
    """Where cost grows faster than tokens: contestant, from, to, how much more each token costs.

    Compared are rows of one kind of workload (batch, spread, patches) with the cheapest row of fewer or as many tokens
    per pair or pairs, and only beyond noise: the 20th percentile of one against the 80th of the other.
    """
    found = []
    timed = [row for row in rows if row["suite"] == "scaling" and row["median_ms"]]
    timed.sort(key=lambda row: (row["tokens"] / row["batch"], row["batch"]))
    kinds = _groups(timed, lambda row: (row["contestant"], row["scope"], row["workload"].split("-")[0]))
    for (contestant, scope, _), group in kinds.items():
        for i, row in enumerate(group[1:], 1):
            cheapest = min(group[:i], key=_per_token)
            if _per_token(row, "p20_ms") > GROWTH * _per_token(cheapest, "p80_ms"):
                a, b = (f"{one['workload']} at B={one['batch']}" for one in (cheapest, row))
                found.append((f"{contestant} ({scope})", a, b, _per_token(row) / _per_token(cheapest)))
    return found


def _per_token(row: dict[str, Any], time: str = "median_ms") -> float:
    return row[time] / row["tokens"]


def _growth(rows: Rows) -> str:
    if not any(row["suite"] == "scaling" for row in rows):
        return ""
    found = growth(rows)
    if not found:
        return "Nowhere in the scaling suite does cost grow faster than tokens, beyond noise."
    lines = [f"- {name}: {ratio:.2f} times as much a token in {b} as in {a}" for name, a, b, ratio in found]
    return "Where cost grows faster than tokens, beyond noise:\n\n" + "\n".join(lines)


def _losses(rows: Rows) -> str:
    """Wherever a peer of the same dtype is faster than the fastest of ours on the same case."""
    lines = [
        f"- {peer['workload']}, {peer['shape']}, {peer['dtype']}: {peer['contestant']} {_short(peer['median_ms'])} ms, "
        f"{ours['contestant']} {_short(ours['median_ms'])} ms"
        for ours, peer in _fastest(rows)
        if ours and peer and peer["median_ms"] < ours["median_ms"]
    ]
    return "Where a peer is faster than we are:\n\n" + "\n".join(lines) if lines else ""


def replaced(readme: str, text: str) -> str:
    """The README with the section between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md: the lines {START!r} and {END!r} must both be there, in this order")
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


def plot_rows(by_device: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is drawn: the first device, a GPU where there is one. No plot is of another family."""
    return [row for row in next(iter(by_device.values()), []) if row["suite"] not in (*FAMILIES, "export")]


def check(root: Path = ROOT) -> list[str]:
    """What does not match the result files; nothing, if all does."""
    by_device = load(root)
    drawn = [name for name in PLOTS if (root / RESULTS / f"{name}.png").exists()]
    wanted = digest(plot_rows(by_device))
    wrong = [f"{name}.png is not of these rows" for name in drawn if _digest_of(root, name) != wanted]
    readme = (root / "README.md").read_text(encoding="utf-8")
    if replaced(readme, section(by_device, drawn)) != readme:
        wrong.append("the performance section of README.md is not of these files")
    return wrong


def _digest_of(root: Path, name: str) -> str | None:
    from PIL import Image

    with Image.open(root / RESULTS / f"{name}.png") as image:
        return image.info.get(DIGEST)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the section and the plots, or check them."""
    parser = argparse.ArgumentParser(description="README's performance section and plots from bench/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something does not match")
    if parser.parse_args(argv).check:
        wrong = check(root)
        print("\n".join(wrong) or "README.md and the plots match the result files")
        return int(bool(wrong))
    by_device = load(root)
    rows, drawn = plot_rows(by_device), []
    for name, draw in PLOTS.items():
        path = root / RESULTS / f"{name}.png"
        path.unlink(missing_ok=True)
        if rows and draw(rows, path):
            drawn.append(name)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    write_atomically(readme, replaced(text, section(by_device, drawn)))
    print(f"{sum(map(len, by_device.values()))} rows, plots: {', '.join(drawn) or 'none'}")
    return 0


def _short(value: float) -> str:
    """Three digits, and no exponent for large numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
