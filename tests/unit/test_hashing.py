from hypothesis import given
from hypothesis import strategies as st

from mrcg.hashing import canonical_json, digest, draw, seed_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner),
)


@given(st.dictionaries(st.text(), json_values))
def test_order_of_keys_does_not_matter(value):
    assert digest(value) == digest(dict(reversed(value.items())))


@given(json_values, json_values)
def test_different_values_have_different_digests(a, b):
    assert (canonical_json(a) == canonical_json(b)) == (digest(a, 64) == digest(b, 64))


@given(st.integers(), st.text(), st.text())
def test_draws_lie_in_the_unit_interval_and_repeat(seed, purpose, key):
    assert 0 <= draw(seed, purpose, key) < 1
    assert draw(seed, purpose, key) == draw(seed, purpose, key)


def test_draws_are_even():
    draws = [draw(1, "split", str(i)) for i in range(4000)]
    assert abs(sum(d < 0.7 for d in draws) / 4000 - 0.7) < 0.03


@given(st.integers(), st.text())
def test_seeds_fit_into_a_generator(seed, part):
    assert 0 <= seed_of(seed, part) < 2**63
