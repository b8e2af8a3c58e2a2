"""What a run of `stress_budget.py` kept or broke, and all of them in one table."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]  # one run, as `stress_budget.one` writes it
MB = 1_000_000
# Largest difference of a parameter. Sums in another order differ by rounding, which Adam turns into
# an update where a gradient is no larger. A tenth of one is let pass; a step that was lost or done
# twice is a whole one.
_SAME_SUMS, _OTHER_SUMS = 0.0, 1e-4


def verdict(row: Row) -> str:
    """`kept`, or the promise that a run broke, worst first."""
    if row["sampled_bytes"] > row["budget_bytes"]:
        return "passed by the sampled figure"
    if row["kernel_bytes"] > row["budget_bytes"]:
        return "passed by the kernel's figure"
    if row["code"] == 3:
        if "--budget" not in row["named"]:
            return "a refusal that names no budget"
        return "kept" if row["lost_steps"] <= 1 else "more than a step lost"
    if row["code"]:
        return f"exit code {row['code']}"
    allowed = _OTHER_SUMS if row["chunk_changed"] else _SAME_SUMS
    return "kept" if row["difference"] <= allowed else "a wrong result"


def summary(rows: list[Row]) -> str:
    """Counts as a Markdown table."""
    sampled = [row["sampled_bytes"] / row["budget_bytes"] for row in rows]
    kernel = [row["kernel_bytes"] / row["budget_bytes"] for row in rows]
    budgets = [row["budget_bytes"] / MB for row in rows]
    refused = [row for row in rows if row["code"] == 3]
    found = [verdict(row) for row in rows]
    lines = {
        "runs": len(rows),
        "budgets, MB": f"{min(budgets, default=0):.0f} to {max(budgets, default=0):.0f}",
        "samples from outside": sum(row["samples"] for row in rows),
        "budget passed, by the sampled figure": sum(share > 1 for share in sampled),
        "highest sampled share of a budget": f"{max(sampled, default=0):.3f}",
        "budget passed, by the kernel's figure": sum(share > 1 for share in kernel),
        "highest share by the kernel's figure": f"{max(kernel, default=0):.3f}",
        "finished (exit 0)": sum(row["code"] == 0 for row in rows),
        "wrong results among them": found.count("a wrong result"),
        "refused or given up (exit 3)": len(refused),
        "of them that name no budget": sum("--budget" not in row["named"] for row in refused),
        "of them that lost more than a step": found.count("more than a step lost"),
        "any other exit code": sum(row["code"] not in (0, 3) for row in rows),
        "answers to memory pressure": sum(row["actions"] for row in rows),
        "training workers started again": sum(row["restarts"] for row in rows),
        "processes the kernel killed at a limit": sum(row["kills"] for row in rows),
        "runs that filled a cache of their own": sum(row["fresh_cache"] for row in rows),
        "limits": ", ".join(sorted({name for row in rows for name in row["limits"]})),
    }
    table = ["| what | count |", "|---|---|"]
    table += [f"| {name} | {value} |" for name, value in lines.items()]
    broken = [
        f"run {row['number']}: {said}, budget {row['budget_bytes'] / MB:.0f} MB"
        for row, said in zip(rows, found, strict=True)
        if said != "kept"
    ]
    return "\n".join([*table, *([""] if broken else []), *broken])
