"""The measures of a robustness passport: names, directions, neutral values and what they mean."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RobustnessMeasure:
    """A measure of a passport as pages show it.

    Attributes:
        shown: name as people write it.
        neutral: value where biology and site weigh the same, or nothing is lost; None without one.
        higher_is_better: direction.
        meaning: a sentence for the page, without its full stop.
    """

    shown: str
    neutral: float | None
    higher_is_better: bool
    meaning: str


#: By the name in `result.json`; the first is the main one.
MEASURES: dict[str, RobustnessMeasure] = {
    "croma": RobustnessMeasure(
        shown="CRoMa",
        neutral=0.0,
        higher_is_better=True,
        meaning="Margin of a sample: how much nearer its five nearest of the same class from other "
        "sites are than its five nearest of other classes from its own site, from -1 to 1. The "
        "median over samples; above 0 biology is nearer (Grisi et al. 2026)",
    ),
    "croma_worst_tenth": RobustnessMeasure(
        shown="CRoMa, worst tenth",
        neutral=0.0,
        higher_is_better=True,
        meaning="Mean margin of the tenth of samples with the lowest: a good median can hide them",
    ),
    "croma_below_0": RobustnessMeasure(
        shown="share below 0",
        neutral=None,
        higher_is_better=False,
        meaning="Share of samples whose margin is 0 or less: the impostor of the same site is "
        "nearer",
    ),
    "ri": RobustnessMeasure(
        shown="RI",
        neutral=0.5,
        higher_is_better=True,
        meaning="Robustness index: of the first k neighbours that share either class or site, but "
        "not both, the share that has the class; k is the one whose vote tells the class best "
        "(PathoROB)",
    ),
    "mari": RobustnessMeasure(
        shown="MaRI",
        neutral=0.5,
        higher_is_better=True,
        meaning="The same with neighbours weighted by nearness, exp(-distance / tau)",
    ),
    "apd": RobustnessMeasure(
        shown="APD",
        neutral=0.0,
        higher_is_better=True,
        meaning="Average performance drop: relative change in balanced accuracy of a probe of the "
        "class as its training is more and more confounded with the site, from 0 (none) to -1",
    ),
    "nipd": RobustnessMeasure(
        shown="nIPD",
        neutral=0.0,
        higher_is_better=True,
        meaning="Normalised integrated performance degradation: the same loss as a share of what "
        "the probe is better than chance, as the area over Cramér's V; a straight fall to chance "
        "is -0.5",
    ),
    "clustering_score": RobustnessMeasure(
        shown="clustering score",
        neutral=0.0,
        higher_is_better=True,
        meaning="Adjusted Rand index of k-means clusters with classes minus that with sites, from "
        "-1 to 1 (PathoROB)",
    ),
    "site_auroc": RobustnessMeasure(
        shown="site AUROC",
        neutral=0.5,
        higher_is_better=False,
        meaning="How well a linear probe tells the site, out of fold by patient, one site against "
        "the rest: 0.5 if it cannot",
    ),
    "class_accuracy": RobustnessMeasure(
        shown="class, k-NN",
        neutral=None,
        higher_is_better=True,
        meaning="Balanced accuracy of the k neighbours' vote on the class: a column that knows "
        "nothing is no use, however robust",
    ),
}
