"""BLEU and chrF of translations, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF


class TranslationScores:
    """Compares translations with their references, as they are: cased, not tokenised before.

    Source: Post, "A Call for Clarity in Reporting BLEU Scores" (2018).
    """

    primary = "bleu"
    """The score that a run is judged by."""

    def __init__(self) -> None:
        # Without its `effective_order`, as for whole corpora; `force` keeps it from warning that
        # texts look tokenised.
        self._bleu, self._chrf = BLEU(force=True), CHRF()

    def __call__(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """`bleu` and `chrf` of a whole corpus, 0 to 100.

        Args:
            outputs: what was written.
            references: what should be, one for each.
        """
        return {
            "bleu": self._bleu.corpus_score(list(outputs), [list(references)]).score,
            "chrf": self._chrf.corpus_score(list(outputs), [list(references)]).score,
        }

    def signatures(self) -> dict[str, str]:
        """How each score is computed, in the words of sacrebleu; ask after scoring something."""
        return {
            "bleu": str(self._bleu.get_signature()),
            "chrf": str(self._chrf.get_signature()),
        }
