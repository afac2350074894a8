"""Both releases' code by one estimator, so that a change of the estimator does not pass for one of the code."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from compile.pricing import PricingError, code_changes, find_compiled, price
from reports.side_by_side import OnePrice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from compile.toolchain import Toolchain
    from harness.gate.sides import Side

METRIC = "predicted_cycles_at_one_price"
"""What the gate judges across releases: cycles of either side's code, by one estimator."""


def one_price(
    old: Side, new: Side, toolchain: Toolchain, cache: Path, say: Callable[[str], None]
) -> tuple[OnePrice, ...]:
    """Price each case that both sides compiled by *toolchain*, the new side's; a case that cannot be says why.

    Args:
        old: the side whose code is generated again.
        new: the side that is priced already.
        toolchain: the new side's.
        cache: where the compiles of both are.
        say: receives a line of progress.
    """
    before, after = _bmodels(old), _bmodels(new)
    cases = [case for case in before if case in after]
    if cases:
        say(f"pricing the old code of {len(cases)} cases by TPU-MLIR {toolchain.version}")
    return tuple(_of_case(case, before[case], after[case], toolchain, cache) for case in cases)


def with_prices(old: Side, new: Side, prices: Sequence[OnePrice]) -> tuple[Side, Side]:
    """Both sides with the metric, of all cases that have a price."""
    before = {one.case: one.old_cycles for one in prices if one.old_cycles is not None}
    after = {one.case: one.new_cycles for one in prices if one.new_cycles is not None}
    return _with(old, before), _with(new, after)


def _of_case(case: str, old: str, new: str, toolchain: Toolchain, cache: Path) -> OnePrice:
    if not old or not new:
        return OnePrice(case=case, reason="one side has several bmodels of it")
    try:
        before, after = find_compiled(old, cache), find_compiled(new, cache)
        priced = price(before.folder, toolchain)
    except (PricingError, OSError) as error:
        return OnePrice(case=case, reason=str(error))
    if other := code_changes(before.profile, priced):
        return OnePrice(
            case=case,
            reason=f"TPU-MLIR {toolchain.version} makes other code of the same final MLIR: {', '.join(other)}",
        )
    return OnePrice(
        case=case,
        own_cycles=before.profile.predicted_cycles,
        old_cycles=priced.predicted_cycles,
        new_cycles=after.profile.predicted_cycles,
        same_program=not code_changes(before.profile, after.profile),
    )


def _bmodels(side: Side) -> dict[str, str]:
    """The SHA-256 of the bmodel of each case that has predictions; empty where the launches do not agree.

    In a launch it is the one that most of the case's checks judged: a check of weights made hard on purpose compiles
    the same graph with those.
    """
    found: dict[str, str] = {}
    for launch in side.launches:
        judged: dict[str, Counter[str]] = {}
        for record in launch.checks.values():
            if record.case and record.predicted and record.bmodel_sha256:
                judged.setdefault(record.case, Counter())[record.bmodel_sha256] += 1
        for case, counts in judged.items():
            (bmodel, most), *others = counts.most_common(2)
            agreed = found.setdefault(case, bmodel) == bmodel and not any(count == most for _, count in others)
            found[case] = bmodel if agreed else ""
    return found


def _with(side: Side, cycles: Mapping[str, int]) -> Side:
    """The same side, with the cycles by case as a metric of each of its records that has predictions."""
    launches = []
    for launch in side.launches:
        checks = {
            key: msgspec.structs.replace(record, predicted={**record.predicted, METRIC: cycles[record.case]})
            if record.predicted and record.case in cycles
            else record
            for key, record in launch.checks.items()
        }
        launches.append(replace(launch, checks=checks))
    return replace(side, launches=tuple(launches))
