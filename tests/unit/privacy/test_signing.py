import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import UsageError
from mrcg.privacy.signing import (
    ENVIRONMENT,
    KEY_BYTES,
    Signature,
    Signer,
    is_signed,
    missing_signing_key_error,
    new_signing_key,
    signer_from_environment,
)

SIGNER = Signer(bytes(range(KEY_BYTES)))
SIGNED = SIGNER.sign(b"a receipt")


def flipped(data, bit):
    """Return the bytes with one bit flipped."""
    place, bit = divmod(bit % (8 * len(data)), 8)
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


@given(st.binary(max_size=200))
def test_a_signature_is_valid_for_its_data(data):
    signed = SIGNER.sign(data)
    assert is_signed(data, signed)
    assert signed.public_key == SIGNER.public_key
    assert SIGNER.sign(data) == signed, "a signature follows from data and key"


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10**6))
def test_one_flipped_bit_of_the_data_invalidates_the_signature(data, bit):
    assert not is_signed(flipped(data, bit), SIGNER.sign(data))


@given(st.integers(0, 8 * 64 - 1))
def test_any_other_signature_is_refused(bit):
    turned = flipped(bytes.fromhex(SIGNED.signature), bit).hex()
    assert not is_signed(b"a receipt", SIGNED.model_copy(update={"signature": turned}))


@given(st.integers(0, 8 * KEY_BYTES - 1))
def test_any_other_public_key_is_refused(bit):
    turned = flipped(bytes.fromhex(SIGNED.public_key), bit).hex()
    assert not is_signed(b"a receipt", SIGNED.model_copy(update={"public_key": turned}))


@given(st.integers(0, 8 * KEY_BYTES - 1))
def test_another_private_key_gives_another_signature(bit):
    other = Signer(flipped(bytes(range(KEY_BYTES)), bit))
    assert other.public_key != SIGNER.public_key
    assert not is_signed(b"a receipt", SIGNED.model_copy(update={"public_key": other.public_key}))


@given(st.text(max_size=140), st.text(max_size=140))
def test_malformed_signatures_are_refused_without_an_error(key, signature):
    assert not is_signed(b"a receipt", Signature(public_key=key, signature=signature))


@pytest.mark.parametrize("cut", [0, 1, 31, 63])
def test_a_truncated_signature_is_refused(cut):
    for name in ("public_key", "signature"):
        whole = bytes.fromhex(getattr(SIGNED, name))
        if cut < len(whole):
            assert not is_signed(b"a receipt", SIGNED.model_copy(update={name: whole[:cut].hex()}))


def test_new_keys_are_random_and_can_sign():
    keys = {new_signing_key() for _ in range(8)}
    assert len(keys) == 8
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in keys)
    assert all(is_signed(b"x", Signer(bytes.fromhex(key)).sign(b"x")) for key in keys)


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    for nothing in (None, "", "  "):
        monkeypatch.delenv(ENVIRONMENT, raising=False)
        if nothing is not None:
            monkeypatch.setenv(ENVIRONMENT, nothing)
        assert signer_from_environment() is None
    key = bytes(range(KEY_BYTES)).hex()
    monkeypatch.setenv(ENVIRONMENT, f" {key}\n")
    assert signer_from_environment().public_key == SIGNER.public_key
    (tmp_path / "key").write_text(f"{key}\n")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "key"))
    assert signer_from_environment().public_key == SIGNER.public_key


@pytest.mark.parametrize("stated", ["00" * 31, "00" * 33, "zz" * 32, "nowhere/key"])
def test_an_invalid_key_is_refused_and_not_quoted(monkeypatch, tmp_path, stated):
    (tmp_path / "file").write_text(stated)
    for value in (stated, str(tmp_path / "file")):
        monkeypatch.setenv(ENVIRONMENT, value)
        with pytest.raises(UsageError, match="create a key with `mrcg keys new --kind signing --out FILE`") as refused:
            signer_from_environment()
        assert value not in str(refused.value), "it may be a key with a typo"


def test_the_error_without_a_key_says_how_to_create_one():
    assert ENVIRONMENT in str(missing_signing_key_error())
    assert "mrcg keys new --kind signing" in str(missing_signing_key_error())
