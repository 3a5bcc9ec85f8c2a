"""A report: the ranked encoders' names, one a line."""

from pathlib import Path

from encbench.records import read_prediction


def write_list(run, out=None):
    path = Path(out or run / "report") / "list.txt"
    order = read_prediction(run / "prediction.json").order
    path.write_text("".join(f"{row.name}\n" for row in order))
    return path
