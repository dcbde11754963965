"""Lines of a file as raw records."""

import json

from deploy.feeding import key_of, lines_of


def test_json_lines_go_on_byte_for_byte_with_their_user_as_key() -> None:
    line = b'{"prompt":"caf\xc3\xa9",  "user_id":"u1","extra":[1]}'
    [(number, value, key, problem)] = lines_of([b"\n", line + b"\r\n"], "auto", "x")
    assert (number, value, key, problem) == (2, line, b"u1", None)


def test_bad_json_lines_are_named_and_the_rest_goes_on() -> None:
    lines = [
        b'{"prompt":"a"}',
        b"{broken",
        b'{"prompt":5}',
        b'{"id":"1"}',
        b'"text"',
        b'{"prompt":"\xff"}',
        b'{"prompt":"b"}',
    ]
    found = list(lines_of(lines, "auto", "x"))
    assert [number for number, _, _, problem in found if problem is None] == [1, 7]
    assert [number for number, _, _, problem in found if problem] == [2, 3, 4, 5, 6]
    assert "neither" in str(found[3][3])


def test_plain_lines_are_prompts() -> None:
    found = list(lines_of([b"\xef\xbb\xbfwhat is {x}?\n", b"  \n", b"{not json}\n", b"\xff\n"], "auto", "notes.txt"))
    assert [json.loads(value) for _, value, _, problem in found if problem is None] == [
        {"prompt": "what is {x}?", "source": "notes.txt"},
        {"prompt": "{not json}", "source": "notes.txt"},
    ]
    assert found[2][0] == 4
    assert "UTF-8" in str(found[2][3])


def test_the_key_of_anything_can_be_asked_for() -> None:
    assert key_of(b'{"user_id":"u"}') == b"u"
    assert [key_of(value) for value in (b"", b"\xff", b"[1]", b'{"user_id":5}', b'{"user_id":"\\ud800"}')][:4] == [
        None
    ] * 4
    assert key_of(b'{"user_id":"\\ud800"}') == b"?"
