"""The results of ``speed.py`` as Markdown tables, a table for each case."""

import itertools
from statistics import median

HEAD = (
    "competitor",
    "step ms",
    "rows/s",
    "x product",
    "sksae is faster by",
    "encode ms",
    "x product",
    "sksae is faster by",
    "peak MB",
    "L0",
    "dead",
    "rounds",
)


SUMMARY = (
    "case",
    "product ms",
    "step ms",
    "rows/s",
    "x product",
    "over the bare loop",
    "faster than reference",
    "than the best peer",
    "encode rows/s",
    "than the best peer",
)


def summary(results):
    """Give a table of sksae alone, a line for each case."""
    parts = ["\n| " + " | ".join(SUMMARY) + " |\n" + "|---" * len(SUMMARY) + "|"]
    for case, group in itertools.groupby(results, key=lambda r: r["case"]):
        good = [r for r in group if "error" not in r]
        if any(r["competitor"] == "sksae" for r in good):
            parts.append("| " + " | ".join(_summary_cells(case, good)) + " |")
    return "\n".join(parts)


def _summary_cells(case, results):
    mine = [r for r in results if r["competitor"] == "sksae"]
    step, encode = "times_product", "encode_times_product"
    yield case
    yield f"{median(ms for r in mine for ms in r['product_ms']):.3g}"
    yield _number(mine, "step_ms", ".4g")
    yield _number(mine, "rows_per_s", ",.0f")
    yield _number(mine, "times_product", ".2f")
    overhead = _ratio(results, "sksae-bare", step)
    yield "–" if overhead is None else f"{1 / overhead - 1:+.1%}"
    yield _best(results, ["sksae-reference"], step)
    peers = {r["competitor"] for r in results if not r["competitor"].startswith("sksae")}
    yield _best(results, sorted(peers), step)
    yield _number(mine, "encode_rows_per_s", ",.0f")
    yield _best(results, sorted(peers), encode)


def _best(results, competitors, key):
    """Give the least ratio of some competitors to sksae, and whose it is if there are several."""
    ratios = {name: _ratio(results, name, key) for name in competitors}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not ratios:
        return "–"
    name = min(ratios, key=ratios.get)
    return f"{ratios[name]:.2f}" + (f" ({name})" if len(competitors) > 1 else "")


def table(results):
    """Give the tables; of several rounds the medians."""
    parts, failed = [], []
    for case, group in itertools.groupby(results, key=lambda r: r["case"]):
        group = list(group)
        good = [r for r in group if "error" not in r]
        failed += [r for r in group if "error" in r]
        parts.append(_title(case, good))
        parts.append("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
        for competitor in dict.fromkeys(r["competitor"] for r in good):
            parts.append("| " + " | ".join(_cells(competitor, good)) + " |")
    for r in failed:
        lines = r["error"].strip().splitlines()
        parts.append(f"\n{r['case']}, {r['competitor']}: {lines[-1] if lines else 'failed'}")
    return "\n".join(parts)


def _title(case, results):
    """Name a case and what the machine could do meanwhile."""
    if not results:
        return f"\n{case}\n"
    products = [ms for r in results for ms in r["product_ms"]]
    floor = median(products) + median(r["optimizer_ms"] for r in results)
    return (
        f"\n{case}: the product alone {median(products):.3g} ms (from {min(products):.3g} to "
        f"{max(products):.3g}), floor {floor:.3g} ms\n"
    )


def _cells(competitor, results):
    mine = [r for r in results if r["competitor"] == competitor]
    yield competitor
    yield _number(mine, "step_ms", ".4g")
    yield _number(mine, "rows_per_s", ",.0f")
    yield _number(mine, "times_product", ".2f")
    yield _faster(results, competitor, "times_product")
    yield _number(mine, "encode_ms", ".4g")
    yield _number(mine, "encode_times_product", ".2f")
    yield _faster(results, competitor, "encode_times_product")
    yield _number(mine, "peak_gpu_mb" if "peak_gpu_mb" in mine[0] else "peak_rss_mb", ",.0f")
    yield _number(mine, "l0", ".1f")
    yield _number(mine, "dead_in_training", ".1%")
    yield str(len(mine))


def _number(results, key, form):
    values = [r[key] for r in results if key in r]
    return format(median(values), form) if values else "–"


def _faster(results, competitor, key):
    ratio = _ratio(results, competitor, key)
    return "–" if ratio is None else f"{ratio:.2f}"


def _ratio(results, competitor, key):
    """Give the median over rounds of a ratio to sksae, each in products of its own moment."""
    by_round = {(r["competitor"], r["round"]): r[key] for r in results if key in r}
    ratios = [
        value / by_round["sksae", turn]
        for (name, turn), value in by_round.items()
        if name == competitor and ("sksae", turn) in by_round
    ]
    return median(ratios) if ratios else None
