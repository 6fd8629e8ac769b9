import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.text import normalised, normalised_or_none


@given(st.text())
def test_a_normalised_text_stays_as_it_is(text):
    once = normalised(text)
    assert normalised(once) == once
    assert once == once.strip()
    assert unicodedata.is_normalized("NFC", once)


@given(st.text())
def test_forms_that_look_equal_are_equal(text):
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("padded", [" a", "a ", "\ta\r\n", "a\0\0", "\ufeffa", "\u00a0a\u3000", "\0 a \0"])
def test_padding_goes(padded):
    assert normalised(padded) == "a"


@pytest.mark.parametrize("nothing", [None, "", " ", "\0", "\ufeff \t"])
def test_what_is_only_padding_is_nothing(nothing):
    assert normalised_or_none(nothing) is None
