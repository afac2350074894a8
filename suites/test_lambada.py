"""LAMBADA, document by document, beside the reference: does the bmodel hold the last words for as likely?"""

import pytest

from compile.spec import GraphKind
from harness.lambada.pair import judge_documents


@pytest.mark.extra
@pytest.mark.graphs(GraphKind.DECODE)
def test_paired(case, prefills, device, oracle, check, lambada_texts):
    """Perplexity and accuracy of the same documents each time; what makes one hard is hard for both, and cancels."""
    engine = device.engine(check, case, *prefills)
    judge_documents(check, engine, oracle, lambada_texts)
