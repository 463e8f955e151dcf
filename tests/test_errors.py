import inspect
import json

import pytest

from unscanned import errors

CODES = {
    "UnscannedError": 1,
    "BugError": 1,
    "SettingsError": 2,
    "VolumeError": 3,
    "DatasetError": 3,
    "PartialFailure": 4,
    "CheckpointError": 5,
    "TrainingError": 6,
    "ResourceError": 7,
    "WorkerLost": 7,
    "BusyError": 8,
    "DownloadError": 9,
    "Interrupted": 130,
}


def test_every_error_has_the_exit_code_that_the_documentation_gives():
    classes = {
        name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    }
    assert {name: cls.exit_code for name, cls in classes.items()} == CODES
    assert sorted(errors.__all__) == sorted(classes)


@pytest.mark.parametrize("name", CODES)
def test_every_error_is_caught_as_the_common_one(name):
    with pytest.raises(errors.UnscannedError):
        raise getattr(errors, name)("something is wrong")


def test_a_message_says_what_where_found_expected_and_what_to_do():
    error = errors.VolumeError(
        "the file is cut short", where="a.nii.gz", found="51 bytes", expected="100 bytes", do="Copy it again."
    )
    assert str(error) == "a.nii.gz: the file is cut short; found 51 bytes, expected 100 bytes. Copy it again."


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "wrong"),
        ({"where": "here"}, "here: wrong"),
        ({"found": 0}, "wrong; found 0"),
        ({"expected": 3}, "wrong; expected 3"),
        ({"do": "Stop."}, "wrong. Stop."),
    ],
)
def test_a_part_that_is_not_known_leaves_no_trace_in_the_message(parts, text):
    assert str(errors.UnscannedError("wrong", **parts)) == text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.json"), "No such file or directory"),
        (OSError("a reason of its own"), "a reason of its own"),
        (KeyError("train"), "no key 'train'"),
        (TypeError("'NoneType' object is not subscriptable"), "content of another kind"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"), "byte 2 is no UTF-8 text"),
        (json.JSONDecodeError("Expecting value", "[", 1), "no JSON: Expecting value: line 1 column 2 (char 1)"),
        (MemoryError(), "too little memory"),
        (ValueError(), "no reason given"),
        (ValueError("the seal is broken"), "the seal is broken"),
        (True, "true"),
        (3, "3"),
    ],
)
def test_what_was_found_is_told_in_words_not_in_those_of_python(found, words):
    assert str(errors.VolumeError("cannot be read", found=found)) == f"cannot be read; found {words}"


def test_values_are_quoted_as_in_json():
    assert [errors.quoted(value) for value in ("a", None, True, [1, "b"], {"c": None})] == [
        "'a'",
        "null",
        "true",
        '[1, "b"]',
        '{"c": null}',
    ]
    assert errors.quoted({1}) == "{1}"
