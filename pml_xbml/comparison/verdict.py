"""What a user can do with a comparison, in words: which arm of which loss to use.

MAP@R decides. With one loss its 95% interval does. With several losses the p-value does, corrected for their
number, since of twenty losses without an effect one would help by chance. Sentences give the figure that
decides, and no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .paired_results import PairedResults
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import Arm, RunConfig
from .statistics import MIN_SEEDS, PairedDifference, Verdict, format_p, format_points, holm
from .tables import CLASSES

_METRIC = METRICS[PRIMARY_METRIC]


@dataclass(frozen=True)
class LossVerdict:
    """What the test classes say of one loss, at the weight that the validation classes chose.

    Attributes:
        paired: its results.
        against_plain: XML against plain training.
        against_control: XML against the control, if there is one.
        p_value: of XML against plain training, corrected for the number of losses.
        control_p_value: of XML against the control, corrected likewise; NaN without a control.
        num_losses: how many losses ``p_value`` is corrected for.
        num_controls: how many losses ``control_p_value`` is corrected for.
        untouched: MAP@R of the pretrained network without training, in percent, if there is one.
    """

    paired: PairedResults
    against_plain: PairedDifference
    against_control: PairedDifference | None
    p_value: float
    control_p_value: float
    num_losses: int
    num_controls: int
    untouched: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether XML helps, compared with plain training."""
        return self.against_plain.verdict(self.p_value)

    @property
    def verdict_over_control(self) -> Verdict:
        """Whether XML helps, compared with the control; "unclear" without one."""
        if self.against_control is None:
            return "unclear"
        return self.against_control.verdict(self.control_p_value)

    @property
    def beats_untouched(self) -> bool:
        """Whether plain training or XML is better, on average, than the network without training."""
        return _beats(self.against_plain, self.untouched)

    @property
    def control_beats_untouched(self) -> bool:
        """Whether there is a control that is better, on average, than the network without training."""
        return _control_beats(self.against_control, self.untouched)

    @property
    def winner(self) -> Arm | None:
        """The arm to use; None where there are too few seeds to tell."""
        if self.against_plain.num_seeds < MIN_SEEDS:
            return None
        if not self.beats_untouched:
            return "control" if self.control_beats_untouched else "untouched"
        if self.verdict != "helps":
            return "plain"
        return "control" if self.verdict_over_control == "hurts" else "xml"


def judge(paired_results: Sequence[PairedResults], untouched: Result | None = None) -> list[LossVerdict]:
    """Judges each loss on the test classes.

    Of several weights of a loss the one with the best validation MAP@R counts, so that the test classes
    choose nothing.

    Args:
        paired_results: those of one comparison.
        untouched: the result of the pretrained network without training, if there is one.

    Returns:
        One verdict a loss.
    """
    chosen = choose_weights(paired_results)
    against_plain = [paired.t_test(PRIMARY_METRIC, "test") for paired in chosen]
    against_control = [
        paired.t_test(PRIMARY_METRIC, "test", "control") if paired.control else None for paired in chosen
    ]
    p_values = holm([test.p_value for test in against_plain])
    control_p_values = holm([float("nan") if test is None else test.p_value for test in against_control])
    num_controls = sum(test is not None for test in against_control)
    level = _level(untouched, "test")
    return [
        LossVerdict(*row, len(chosen), num_controls, level)
        for row in zip(chosen, against_plain, against_control, p_values, control_p_values, strict=True)
    ]


def choose_weights(paired_results: Sequence[PairedResults]) -> list[PairedResults]:
    """Of each loss the weight with the best MAP@R on the validation classes."""
    losses = dict.fromkeys(paired.loss for paired in paired_results)
    return [
        max((paired for paired in paired_results if paired.loss == loss), key=_validation_of_xml)
        for loss in losses
    ]


def winning_run(verdicts: Sequence[LossVerdict], untouched: Result | None = None) -> RunConfig | None:
    """The settings to use: of the winners of all losses the best on the validation classes.

    Returns:
        The settings of the winner's first seed; None where there are too few seeds to tell.
    """
    winners: list[Sequence[Result]] = []
    for verdict in verdicts:
        if verdict.winner == "untouched" and untouched is not None:
            winners.append([untouched])
        elif verdict.winner is not None:
            winners.append(verdict.paired.of(verdict.winner))
    return max(winners, key=_mean_validation)[0].run if winners else None


def format_verdicts(verdicts: Sequence[LossVerdict]) -> str:
    """The verdicts in words.

    Args:
        verdicts: of all losses.

    Returns:
        Sentences on the losses with which neither arm beats the untouched network; a table if there are
        several losses; and a sentence for each loss.
    """
    beaten = [
        _below_untouched(
            verdict.paired.loss, verdict.against_plain, verdict.against_control, verdict.untouched, "test"
        )
        for verdict in verdicts
        if not verdict.beats_untouched
    ]
    sentences = "\n".join(map(_sentence, verdicts))
    if len(verdicts) == 1:
        return "\n".join([*beaten, sentences])
    return "\n\n".join([*(["\n".join(beaten)] if beaten else []), _summary(verdicts), sentences])


def format_recommendations(paired_results: Sequence[PairedResults], untouched: Result | None = None) -> str:
    """What the validation classes say of each loss, which chose the epochs and maybe the weight: no verdict.

    Args:
        paired_results: those of one comparison.
        untouched: the result of the pretrained network without training, if there is one.

    Returns:
        A sentence for each loss, after those on the losses with which neither arm beats the untouched
        network.
    """
    beaten, sentences = [], []
    level = _level(untouched, "validation")
    for paired in choose_weights(paired_results):
        test = paired.t_test(PRIMARY_METRIC, "validation")
        if not _beats(test, level):
            control = paired.t_test(PRIMARY_METRIC, "validation", "control") if paired.control else None
            beaten.append(_below_untouched(paired.loss, test, control, level, "validation"))
        sentences.append(
            f"{paired.loss}: weight {paired.cross_batch_weight:g} has the best validation {_METRIC} of XML, "
            f"{format_points(test.difference)} points from plain. The validation classes have chosen the "
            "epochs, and the weight if there were several, so measure that weight with another --seed, "
            "without --validation-only."
        )
    return "\n".join([*beaten, *sentences])


def _mean_validation(results: Sequence[Result]) -> float:
    return float(np.mean([result.validation[PRIMARY_METRIC] for result in results]))


def _validation_of_xml(paired: PairedResults) -> float:
    return _mean_validation(paired.xml)


def _level(untouched: Result | None, split: Split) -> float | None:
    return None if untouched is None else 100 * untouched.on(split)[PRIMARY_METRIC]


def _beats(test: PairedDifference, untouched: float | None) -> bool:
    return untouched is None or max(test.baseline, test.candidate) > untouched


def _control_beats(against_control: PairedDifference | None, untouched: float | None) -> bool:
    return against_control is not None and untouched is not None and against_control.baseline > untouched


def _below_untouched(
    loss: str,
    against_plain: PairedDifference,
    against_control: PairedDifference | None,
    untouched: float | None,
    split: Split,
) -> str:
    unbeaten = (
        f"{loss}: neither plain training ({_METRIC} {against_plain.baseline:.2f}) nor XML "
        f"({against_plain.candidate:.2f}) beats the untouched network ({untouched:.2f}) on {CLASSES[split]}"
    )
    if against_control is not None and _control_beats(against_control, untouched):
        return (
            f"{unbeaten}, but the control does ({against_control.baseline:.2f}); use the control, the second "
            "loss on the embeddings themselves, or train with other settings."
        )
    return f"{unbeaten}; use it as it is, or train with other settings."


def _sentence(verdict: LossVerdict) -> str:
    test = verdict.against_plain
    xml = f"{verdict.paired.loss}: XML with weight {verdict.paired.cross_batch_weight:g}"
    measured = f"{_METRIC} on unseen classes changes by {format_points(test.difference)} points"
    if test.num_seeds < MIN_SEEDS:
        return (
            f"{xml} cannot be told from noise with {test.num_seeds} seed(s): {measured}; compare with at "
            f"least {MIN_SEEDS} seeds before you decide."
        )
    measured = f"{measured} ({_decisive(test, verdict.p_value, verdict.num_losses)})"
    if verdict.verdict == "helps" and not verdict.beats_untouched:
        measured = ". ".join(filter(None, [measured, _measured_over_control(verdict)]))
        return f"{xml} helps: {measured}. It is still no better than the untouched network."
    if verdict.verdict == "helps":
        return f"{xml} helps: {measured}. {_over_control(verdict)}"
    if verdict.verdict == "hurts":
        return f"{xml} hurts: {measured}. Leave it off."
    return f"{xml} cannot be told from noise: {measured}. Leave it off."


def _measured_over_control(verdict: LossVerdict) -> str:
    test = verdict.against_control
    if test is None:
        return ""
    decisive = _decisive(test, verdict.control_p_value, verdict.num_controls)
    return f"Over the control it changes by {format_points(test.difference)} points ({decisive})"


def _over_control(verdict: LossVerdict) -> str:
    over = _measured_over_control(verdict)
    if not over:
        return "Turn it on."
    if verdict.verdict_over_control == "helps":
        return f"{over}: the gain is that of the cross-batch fit. Turn it on."
    if verdict.verdict_over_control == "hurts":
        return f"{over}: use the control, the second loss on the embeddings themselves."
    return (
        f"{over}, which cannot be told from noise: the gain may be that of the second loss term, not that of "
        "the cross-batch fit. Turn it on, or use the control, which needs no prototypes."
    )


def _decisive(test: PairedDifference, p_value: float, num_losses: int) -> str:
    """The figure that the verdict is by."""
    if num_losses == 1:
        figure = f"95% interval {format_points(test.low)} to {format_points(test.high)}"
    else:
        p = format_p(p_value)
        figure = f"p {p if p.startswith('<') else f'= {p}'}, corrected for {num_losses} losses"
    return f"{figure}, {test.num_seeds} seeds"


def _summary(verdicts: Sequence[LossVerdict]) -> str:
    lines = [
        f"{_METRIC} of all losses on classes never seen in training, in percent",
        f"{'':<20}{'weight':>8}{'plain':>8}{'XML':>8}{'difference':>12}{'p':>8}{'p (Holm)':>10}"
        f"{'verdict':>10}",
    ]
    for verdict in verdicts:
        paired, test = verdict.paired, verdict.against_plain
        p_values = [format_p(p) if test.num_seeds > 1 else "–" for p in (test.p_value, verdict.p_value)]
        lines.append(
            f"{paired.loss:<20}{paired.cross_batch_weight:>8g}{test.baseline:>8.2f}{test.candidate:>8.2f}"
            f"{format_points(test.difference):>12}{p_values[0]:>8}{p_values[1]:>10}{verdict.verdict:>10}"
        )
    return "\n".join(
        [*lines, f"p (Holm), p corrected for {len(verdicts)} losses, decides: below 0.05 is no chance."]
    )
