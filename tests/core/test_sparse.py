"""Index files: what is believed, and what is read from them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.sparse import Agreement, check, checksums_of, compare, versions_of
from tests.core import strategies as our

A, B, C = "a" * 64, "b" * 64, "c" * 64


def line(name: str, vers: str, cksum: str = A, **extra: object) -> bytes:
    """Write a line as crates.io does."""
    row = {"name": name, "vers": vers, "deps": [], "cksum": cksum, "features": {}, **extra}
    return json.dumps(row, separators=(",", ":")).encode()


ONE, TWO = line("serde", "1.0.0"), line("serde", "1.0.1", yanked=True)


@pytest.mark.parametrize(
    "body",
    [
        ONE,
        ONE + b"\n",
        ONE + b"\n" + TWO + b"\n",
        ONE + b"\r\n" + TWO + b"\r\n",
        b"\n\n" + ONE + b"\n\n\r\n" + TWO,
        b"  " + ONE + b"\t\n",
        line("serde", "1.0.0", new={"a": [1, None]}, features={"é": ["x"]}) + b"\n",
        line("SERDE", "1.0.0"),
        # A line of a later format may lack what we know, as long as some version is there.
        b'{"v":9}\n' + ONE,
        ONE + b'\n{"name":null,"comment":"x"}',
    ],
)
def test_what_cargo_can_read_is_an_index_file(body: bytes) -> None:
    assert check(body, "serde") is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it has no version in it"),
        (b"\n \r\n", "it has no version in it"),
        (b"{}", "it has no version in it"),
        (b'{"name":"serde"}', "it has no version in it"),
        (b'{"name":"serde","vers":1}', "it has no version in it"),
        (b'{"errors":[{"detail":"not now"}]}', "it has no version in it"),
        (b"<!DOCTYPE html>\n<html>", "line 1 is not JSON: '<!DOCTYPE html>'"),
        (ONE + b"\n<html>", "line 2 is not JSON: '<html>'"),
        (ONE + b"\n\n" + TWO[:30], f"line 3 is not JSON: {TWO[:30].decode()!r}"),
        (b"\n[" + ONE + b"]", "line 2 is not a JSON object"),
        (b"null", "line 1 is not a JSON object"),
        (b'"serde"', "line 1 is not a JSON object"),
        (line("other", "1.0.0"), "line 1 is about 'other', not 'serde'"),
        (ONE + b"\n" + line("serde_json", "1.0.0"), "line 2 is about 'serde_json', not 'serde'"),
        (b'{"name":["serde"],"vers":"1.0.0"}', "line 1 is about \"['serde']\", not 'serde'"),
        (ONE[:-1] + b',"n":' + b"9" * 5000 + b"}", "line 1 is not JSON: "),
        (b"[" * 100_000, "line 1 is not JSON: "),
        (b"\xef\xbb\xbf" + ONE, "line 1 is not JSON: "),
        (ONE.decode().encode("utf-16"), "line 1 is not JSON: "),
        (ONE.decode().encode("utf-32-le"), "line 1 is not JSON: "),
        (b'{"name":"serde","vers":"1.0.0\xff"}', "line 1 is not JSON: "),
    ],
)
def test_what_is_no_index_file_says_why(body: bytes, reason: str) -> None:
    objection = check(body, "serde")
    assert objection is not None
    assert objection.reason.startswith(reason)


@given(st.binary() | our.any_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_raise_and_a_reason_is_one_short_line(body: bytes) -> None:
    objection = check(body, "serde")
    checksums_of(body, "serde", "1.0.0")
    versions_of(body)
    if objection is not None:
        assert len(objection.reason) < 400
        assert objection.reason.isprintable()


def any_case(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name.upper(), name.lower(), name.title()])


named_files = our.crate_names().flatmap(
    lambda name: st.tuples(st.just(name), our.index_files(any_case(name), our.versions()))
)


@given(named_files)
def test_a_file_of_this_name_is_believed_however_it_is_written(
    named: tuple[str, our.IndexFile],
) -> None:
    name, file = named
    assert check(file.body, name) is None


@given(named_files, our.crate_names())
def test_a_file_of_another_name_is_not(named: tuple[str, our.IndexFile], other: str) -> None:
    name, file = named
    if other.lower() != name.lower():
        assert check(file.body, other) is not None


@given(named_files, our.crate_names(), st.data())
def test_one_line_of_another_crate_spoils_a_file(
    named: tuple[str, our.IndexFile], other: str, data: st.DataObject
) -> None:
    name, file = named
    if other.lower() != name.lower():
        lines = file.body.split(b"\n")
        lines.insert(data.draw(st.integers(0, len(lines))), line(other, "1.0.0"))
        assert check(b"\n".join(lines), name) is not None


@given(named_files, st.data())
def test_half_a_file_is_not_believed_unless_it_is_whole_lines(
    named: tuple[str, our.IndexFile], data: st.DataObject
) -> None:
    name, file = named
    half = file.body[: data.draw(st.integers(0, len(file.body)))]
    last = half.rpartition(b"\n")[2].strip()
    whole = last in {b"", *(row.line for row in file.rows)}
    some = any(row.line in half for row in file.rows)
    assert (check(half, name) is None) == (whole and some)


# Few names and versions, so that the same ones meet in a file, with and without build metadata.
crates = st.sampled_from(["serde", "Serde", "other"])
few_versions = st.sampled_from(["1.0.0", "1.0.0+x", "1.0.0+x.1", "11.0.0", "1.0.0-a", "0.1.0"])
lookups = st.tuples(crates, few_versions)


@given(our.index_files(crates, few_versions), lookups)
def test_the_checksums_of_a_version_are_those_that_the_whole_file_gives(
    file: our.IndexFile, wanted: tuple[str, str]
) -> None:
    crate, version = wanted
    meant = tuple(row.cksum for row in file.rows if (row.name, row.vers) == (crate, version))
    assert checksums_of(file.body, crate, version) == meant


@given(our.index_files(crates, few_versions))
def test_the_whole_file_is_read_as_it_was_meant(file: our.IndexFile) -> None:
    assert versions_of(file.body) == tuple((row.name, row.vers, row.cksum) for row in file.rows)


broken = st.sampled_from(
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1.0.0",
        b"\xff",
        b"{}",
        b"[" * 50_000,
        ONE[:-1],
        ONE.replace(A.encode(), b"zz"),
        ONE.replace(b'"' + A.encode() + b'"', b"null"),
        ONE.replace(b'"1.0.0"', b"1"),
        ONE.replace(b'"serde"', b"null"),
        b'{"deps":[{"name":"serde","vers":"1.0.0"}]}',
        ONE.decode().encode("utf-16-le"),
        b"\xef\xbb\xbf" + ONE,
    ]
)


@given(st.lists(our.rows(crates, few_versions).map(lambda row: row.line) | broken), lookups)
def test_both_readings_agree_among_broken_lines(
    lines: list[bytes], wanted: tuple[str, str]
) -> None:
    body = b"\n".join(lines)
    crate, version = wanted
    meant = tuple(cksum for *row, cksum in versions_of(body) if row == [crate, version])
    assert checksums_of(body, crate, version) == meant


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ()),
        (line("Foo", "1.0.0") + b"\n", (A,)),
        (line("foo", "1.0.0"), ()),
        (line("Foo", "1.0.1"), ()),
        (line("Foo", "1.0.0+x"), ()),
        (line("Foo", "1.0.0", "AB" * 32), ("ab" * 32,)),
        (line("Foo", "1.0.0", "zz"), ()),
        (line("Foo", "1.0.0", B) + b"\n" + line("Foo", "1.0.0", A), (B, A)),
        (line("Foo", "1.0.0", yanked=True), (A,)),
        (line("Foo", "2.0.0", rust_version="1.0.0"), ()),
        (line("Foo", "2.0.0", deps=[{"name": "Foo", "vers": "1.0.0", "cksum": B}]), ()),
        # One line with spaces and one without are two lines of the same version.
        (line("Foo", "1.0.0", B).replace(b":", b" : ") + b"\n" + line("Foo", "1.0.0", C), (B, C)),
        (b'{"v\\u0065rs":"1\\u002e0.0","name":"\\u0046oo","cksum":"' + A.encode() + b'"}', (A,)),
    ],
)
def test_the_checksums_of_foo_1_0_0(body: bytes, expected: tuple[str, ...]) -> None:
    assert checksums_of(body, "Foo", "1.0.0") == expected


def test_build_metadata_that_a_registry_escapes_is_found() -> None:
    body = line("Foo", "1.0.0", A) + b"\n" + line("Foo", "1.0.0+x", B).replace(b"+", rb"\u002B")
    assert checksums_of(body, "Foo", "1.0.0+x") == (B,)
    assert checksums_of(body, "Foo", "1.0.0") == (A,)


versions_given = st.dictionaries(
    st.sampled_from(["1.0.0", "1.0.1", "2.0.0", "2.0.0+build"]),
    st.sampled_from(["a", "b", "c"]),
    max_size=4,
)


def body_of(checksums: dict[str, str], *, yanked: bool = False) -> bytes:
    """Write an index file; each checksum is given as one of its digits."""
    return b"".join(
        json.dumps({"name": "serde", "vers": vers, "cksum": digit * 64, "yanked": yanked}).encode()
        + b"\n"
        for vers, digit in checksums.items()
    )


@given(versions_given, versions_given)
def test_copies_are_compared_by_what_may_never_change(
    held: dict[str, str], other: dict[str, str]
) -> None:
    agreement = compare(body_of(held), body_of(other, yanked=True))
    if any(other.get(vers, digit) != digit for vers, digit in held.items()):
        assert agreement is Agreement.CONTRADICTS
    elif held.keys() - other.keys():
        assert agreement is Agreement.BEHIND
    else:
        assert agreement is Agreement.AGREES


@given(versions_given, st.booleans())
def test_a_copy_agrees_with_itself_however_it_is_amended(
    held: dict[str, str], yanked: bool
) -> None:
    assert compare(body_of(held), body_of(held, yanked=yanked)) is Agreement.AGREES
    backwards = dict(reversed(held.items()))
    assert compare(body_of(held), body_of(backwards)) is Agreement.AGREES


@given(versions_given, versions_given)
def test_to_contradict_is_mutual_and_to_be_ahead_is_to_agree(
    held: dict[str, str], other: dict[str, str]
) -> None:
    there, back = compare(body_of(held), body_of(other)), compare(body_of(other), body_of(held))
    assert (there is Agreement.CONTRADICTS) == (back is Agreement.CONTRADICTS)
    assert compare(body_of(held), body_of(held | {"3.0.0": "d"})) is Agreement.AGREES


def test_a_version_that_is_listed_twice_may_have_either_checksum() -> None:
    twice = body_of({"1.0.0": "a"}) + body_of({"1.0.0": "b"})
    assert compare(body_of({"1.0.0": "b"}), twice) is Agreement.AGREES
    assert compare(body_of({"1.0.0": "c"}), twice) is Agreement.CONTRADICTS


def test_lines_that_are_no_versions_are_left_out_of_the_comparison() -> None:
    odd = b'{"future":1}\n\n{"name":"serde","vers":"9.0.0"}\n'
    assert compare(odd + body_of({"1.0.0": "a"}), body_of({"1.0.0": "a"})) is Agreement.AGREES
