"""A ranking rule: by another package's probe."""

from encbench.rules import RankingRule, Term

RULE = RankingRule(
    name="sibling-hits",
    version=1,
    predicts="nothing that was ever trained",
    terms=(Term("siblings", "hits"),),
)
