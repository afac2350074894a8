"""The compiler's timeline: totals as the releases write them, and nothing else taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.profile import ProfileError, parse_profile, read_profile

SUBNET = """\
ENGINE_BD                                   ENGINE_GDMA
                                            Load_25|GDMA_TENSOR|s:0|b:0|g:1|e:36|t:37|dr:0|sz:512|bw:12.89
Cast_27|AR|s:37|b:1|g:1|e:44|t:8
--------------------------------------
API_END total_cycle:{cycles}|b:{tiu}|g:{gdma}
TCYC : {cycles}
GDMA SUMMARY : |dr[0] S2L:{read}|dr[1] L2S:{write}|dr[2] S2S:{copy}|dr[3] L2L:0
DDR BW USAGE : 32.36463783%
#######################################


flops: {flops}, runtime: 0.054732ms, ComputationAbility: 0.021292T
"""
COUNT = st.integers(0, 10**12)
NUMBERS = st.fixed_dictionaries(dict.fromkeys(("cycles", "tiu", "gdma", "read", "write", "copy", "flops"), COUNT))


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_totals(subnets):
    """Every total is read, and subnets add up."""
    profile = parse_profile("".join(SUBNET.format(**numbers) for numbers in subnets), "p")
    total = {key: sum(numbers[key] for numbers in subnets) for key in subnets[0]}
    assert profile.predicted_cycles == total["cycles"]
    assert profile.predicted_ms == total["cycles"] / 1e6
    assert (profile.tiu_instructions, profile.gdma_instructions) == (total["tiu"], total["gdma"])
    assert (profile.ddr_read_bytes, profile.ddr_write_bytes) == (total["read"], total["write"])
    assert (profile.ddr_copy_bytes, profile.flops) == (total["copy"], total["flops"])


def _without(*starts):
    numbers = dict.fromkeys(("cycles", "tiu", "gdma", "read", "write", "copy", "flops"), 1)
    return "\n".join(line for line in SUBNET.format(**numbers).splitlines() if not line.startswith(starts))


@pytest.mark.parametrize("missing", [("API_END",), ("GDMA SUMMARY",), ("flops", "DDR BW USAGE")], ids=lambda m: m[0])
def test_incomplete(missing):
    """A profile without one of its totals is refused: a dynamic compile writes an empty one."""
    with pytest.raises(ProfileError, match=f"0 {missing[0]}"):
        parse_profile(_without(*missing), "p")


def test_nothing_computed():
    """An embedding alone moves rows and computes nothing: its profile ends without a line of flops."""
    profile = parse_profile(_without("flops"), "p")
    assert (profile.flops, profile.predicted_cycles) == (0, 1)


def test_absent(tmp_path):
    """No profile at all is an error that says what would have left one."""
    with pytest.raises(ProfileError, match="left no profile"):
        read_profile(tmp_path / "compiler_profile_0.txt")
