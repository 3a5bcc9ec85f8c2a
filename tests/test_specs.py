"""Spec strings: one reader, a canonical form that reads back the same, odd names on disk."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encbench.encoders import EncoderSpec
from encbench.encoders.detect import complete_spec
from encbench.encoders.local import hide_folder, public_spec
from encbench.errors import EncbenchError, UsageError
from encbench.files import expand_home
from encbench.specs import Spec, is_uninformed
from encbench.vision import ReEncoderSpec

NAMES = ("my@model", "what?", "a?b=c", "v1@2?x", "100%", "%40", "a@b@c", "?", "@")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", ["", "@abc123", "?layer=2&pool=own", "@abc123?layer=2"])
def test_a_folder_whose_name_holds_signs(tmp_path, name, more):
    folder = tmp_path / name
    folder.mkdir()
    spec = EncoderSpec.parse(f"st:{folder}{more}")
    assert spec.source == str(folder)
    assert spec.revision == ("abc123" if "@abc" in more else None)
    assert spec.options == ((("layer", "2"), ("pool", "own"))[: more.count("=")])
    assert EncoderSpec.parse(str(spec)) == spec
    shuffled = EncoderSpec.parse(f"control:shuffle({spec})")
    assert shuffled.shuffled == spec
    assert EncoderSpec.parse(str(shuffled)) == shuffled
    folder.rmdir()
    assert EncoderSpec.parse(str(spec)).source.endswith(name.replace("%40", "@"))


def test_python_files_with_signs(tmp_path):
    file = tmp_path / "my@file?.py"
    file.touch()
    spec = EncoderSpec.parse(f"python:{file}:Mine?pool=own")
    assert spec.source == f"{file}:Mine"
    assert EncoderSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("parse", [EncoderSpec.parse, ReEncoderSpec.parse])
@pytest.mark.parametrize("odd", ["\ud800", "\n", "\x00", "\x1b[31m"])
@pytest.mark.parametrize(
    "form", ["st:a{}b", "st:a?subfolder=x{}b", "st:a@{}b", "control:shuffle(st:a{}b)"]
)
def test_names_that_nothing_could_print_are_refused(parse, odd, form):
    with pytest.raises(UsageError) as caught:
        parse(form.format(odd))
    str(caught.value).encode()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\u3000b", "a\u00a0b", "\U0001f469\u200d\U0001f680", "\u732b"])
def test_names_in_any_script_are_taken(name):
    assert EncoderSpec.parse(f"st:/data/{name}").source == f"/data/{name}"


@given(st.text(max_size=40), st.sampled_from([EncoderSpec, ReEncoderSpec, Spec]))
def test_any_text_is_a_spec_that_reads_back_or_is_refused(text, kind):
    try:
        spec = kind.parse(text)
    except UsageError as error:
        str(error).encode()
        return
    assert kind.parse(str(spec)) == spec


def test_controls_without_information():
    assert is_uninformed("control:constant")
    assert is_uninformed("control:random?seed=1")
    assert is_uninformed("control:shuffle(st:a)")
    assert is_uninformed("control:shuffle(st:a)", "st:a")
    assert not is_uninformed("control:shuffle(st:a)", "st:b")
    assert not is_uninformed("control:bag-of-words")


@pytest.mark.parametrize("text", ["st:~nobody-here/m", "./~nobody-here/m", "st:m?x=~nobody-here"])
def test_a_home_that_is_not_there_is_a_name_like_any_other(text):
    with suppress(EncbenchError):
        assert complete_spec(text) == str(EncoderSpec.parse(text))
    assert expand_home("~nobody-here/m") == Path("~nobody-here/m")


def test_no_option_of_a_public_name_holds_a_folder(tmp_path):
    (tmp_path / "base").mkdir()
    for inside in ("queries:{}/q.pth?base={}/base", "queries:a/b/q.pth?base={}/base"):
        text = inside.replace("{}", str(tmp_path))
        for spec in (text, f"control:shuffle({text})", f"pair:({text})+(zoo:mini-t5)"):
            public = public_spec(EncoderSpec.parse(spec))
            assert str(tmp_path) not in str(public)
            assert "base=base" in str(public)
            assert public_spec(public) == public
        assert str(tmp_path) not in hide_folder(f"{text} failed", EncoderSpec.parse(text))
    spec = EncoderSpec.parse("st:a/b?prompt_text=/imagine")
    assert public_spec(spec) == spec


def test_a_huge_spec_is_a_short_message():
    with pytest.raises(UsageError, match="is not an option; write name=value") as caught:
        EncoderSpec.parse(f"st:folder?{'9' * 20_000}")
    assert len(str(caught.value)) < 5000


def test_a_message_that_quotes_several_lines_is_one_line():
    assert str(UsageError("--set a\nb\r\nc is not KEY=VALUE")) == "--set a b  c is not KEY=VALUE"
