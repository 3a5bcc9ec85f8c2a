"""Numbers, names and escapes of reports."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encbench.reports import text
from encbench.reports.published import TABLE, published_for

anything = st.text(st.characters(), max_size=60)


def test_numbers_read_well():
    assert text.number(0.73449) == "0.734"
    assert text.number(-0.0001) == "0.000"
    assert text.number(-0.25, 2) == "−0.25"
    assert text.number(239.1791) == "239.2"
    assert text.number(None) == text.number(float("nan")) == text.number("x") == "–"
    assert text.interval(0.1, 0.25, 2) == "[0.10, 0.25]"
    assert text.interval(None, 1.0) == ""
    assert [text.format_ranks(1, 1), text.format_ranks(2, 4), text.format_ranks(None, None)] == [
        "1",
        "2 to 4",
        "–",
    ]
    assert [text.p_value(0.0004), text.p_value(0.0314)] == ["< 0.001", "0.031"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (512, "512"), (999_999, "1M"), (22_713_216, "22.7M"), (4_762_310_656, "4.76B")],
)
def test_quantities_have_three_figures_and_a_letter(value, shown):
    assert text.quantity(value) == shown


def test_listings_name_few_and_count_the_rest():
    assert text.listing([]) == ""
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing("abcdefg", 3) == "a, b, c and 4 more"
    assert text.count_noun(1, "query") == "1 query"
    assert text.count_noun(1000, "query") == "1,000 queries"


@given(st.dictionaries(st.integers().map(str), anything, max_size=12), st.integers(8, 40))
def test_short_names_fit_and_stay_apart(names, width):
    short = text.short_names(names, width)
    assert short.keys() == names.keys()
    assert len(set(short.values())) == len(names)
    assert all(len(name) <= width for name in short.values())


def test_short_names_keep_what_tells_them_apart():
    names = {
        str(i): f"a-very-long-organization-encoder-v{i}-instruct-multilingual" for i in range(12)
    }
    short = text.short_names(names, 24)
    assert all(re.search(rf"v{i}\b", short[str(i)]) for i in range(12))


def test_short_name_of_a_path_keeps_its_end():
    short = text.shorten("st:/home/somebody/models/all-MiniLM-L6-v2?pool=mean", 40)
    assert short == "st:…/all-MiniLM-L6-v2?pool=mean"


@given(anything)
def test_printable_text_is_one_line_that_every_format_can_hold(value):
    line = text.clean_text(value)
    assert "\n" not in line
    assert "\0" not in line
    assert "\u202e" not in line
    line.encode("utf-8")


@given(anything)
def test_tex_has_no_bare_special_character(value):
    """Whatever is left after removing our own commands is plain text."""
    escaped = text.tex(value)
    for command in (
        r"\textbackslash{}", r"\textasciicircum{}", r"\textasciitilde{}", r"\textless{}",
        r"\textgreater{}", r"\textbar{}", r"\textquotedbl{}", r"\dots{}", "$-$",
        r"\{", r"\}", r"\$", r"\&", r"\%", r"\#", r"\_",
    ):  # fmt: skip
        escaped = escaped.replace(command, "")
    assert not set(escaped) & set("\\{}$&%#_^~")


@given(anything)
def test_markdown_shows_any_text_as_it_is(value):
    """Rendered in a table cell, the text comes back and has become nothing else."""
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    line = text.clean_text(value).strip()
    source = f"| a |\n| --- |\n| {text.markdown(line)} |\n"
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(source)
    cell = [t for t in tokens if t.type == "inline"][-1] if line else None
    if cell is not None:
        kinds = {child.type for child in cell.children or []}
        assert kinds <= {"text", "text_special", "html_entity"}
        assert "".join(child.content for child in cell.children or []) == line


def test_published_rows_are_found_by_hub_id():
    names = {
        "clip:ViT-L-14/openai": "CLIP ViT-L/14",
        "clip:openai/clip-vit-large-patch14@" + "a" * 40: "CLIP ViT-L/14",
        "t5:google/t5-v1_1-xxl?layer=-1&pool=mean": "T5 v1.1 XXL",
        "t5:PixArt-alpha/PixArt-XL-2-1024-MS?subfolder=text_encoder": "T5 v1.1 XXL",
        "gemma:google/gemma-2-2b-it?recipe=sana": "Gemma (SANA-1.5)",
        "blip3o:BLIP3o/BLIP3o-NEXT-SFT-3B?mode=text": "BLIP3o-NEXT",
    }
    for spec, name in names.items():
        found = published_for(spec)
        assert found is not None
        assert found.name == name
    for spec in (
        "clip:ViT-B-32/openai", "t5:google/t5-v1_1-xl", "st:all-MiniLM-L6-v2",
        "gemma:google/gemma-2-9b-it", "control:shuffle(clip:ViT-L-14/openai)",
    ):  # fmt: skip
        assert published_for(spec) is None


def test_published_table_holds_the_papers_values():
    """Two values of each table of the paper, and that there are six rows."""
    rows = {row.name: row for row in TABLE}
    assert len(rows) == 6
    assert rows["BLIP3o-NEXT"].discriminability == 0.734
    assert rows["T5 v1.1 XXL"].disentanglement == 0.893
    assert rows["Gemma after SFT"].geneval == 0.47
