import csv
import json
import os
from pathlib import Path

import pandas
import pytest

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.files import read_table
from keepfrac.tasks.data.labels import found_labels, to_rows

COLUMNS = {"text": "sentence", "label": "class"}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def fault(path, columns=COLUMNS, labels=("0", "1"), limits=None):
    with pytest.raises(UserError) as caught:
        to_rows(read_table(path, columns), labels, limits)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_csv_reads_quotes_newlines_and_keeps_null_as_text(write):
    path = write("a.csv", 'class,sentence,more\r\n1,"two\nlines, ""quoted""",x\r\n0,null,y\r\n1,NA,\r\n0,,z\r\n')
    rows = to_rows(read_table(path, COLUMNS), ["0", "1"])
    assert rows["text"] == ['two\nlines, "quoted"', "null", "NA", ""]
    assert rows["label"] == [1, 0, 1, 0]


def test_tsv_has_no_quoting_and_a_mark_at_the_start_is_no_text(write):
    path = write("a.tsv", b"\xef\xbb\xbfsentence\tclass\n" + 'he said "no\t0\none\u2028two\t1\n'.encode())
    rows = to_rows(read_table(path, COLUMNS), ["0", "1"])
    assert rows["text"] == ['he said "no', "one\u2028two"]


MARKED = ["two\tparts", 'she said "so"', '"all"', "two\nlines", "plain, with a comma", "12"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_that_pandas_wrote_is_read_as_pandas_reads_it(tmp_path, quoting):
    path = tmp_path / "a.tsv"
    pandas.DataFrame({"sentence": MARKED, "class": [0, 1] * 3}).to_csv(path, sep="\t", quoting=quoting, index=False)
    table = read_table(path, COLUMNS)
    assert table.columns["text"] == list(pandas.read_csv(path, sep="\t", dtype=str)["sentence"]) == MARKED
    assert table.in_marks == 0


def test_a_tsv_that_excel_wrote_is_quoted_where_there_are_commas(write):
    path = write("a.tsv", 'sentence\tclass\r\n"one, two"\t0\r\nthree\t1\r\n')
    assert read_table(path, COLUMNS).columns["text"] == ["one, two", "three"]


@pytest.mark.parametrize("odd", ['"no', 'so "it" is', '"it" is', 'it "is"', '"it"'])
def test_quotation_marks_of_a_text_are_kept_and_counted(write, odd):
    table = read_table(write("a.tsv", f"sentence\tclass\n{odd}\t0\nplain\t1\n"), COLUMNS)
    assert table.columns["text"] == [odd, "plain"]
    assert table.in_marks == (odd == '"it"')


def test_jsonl_takes_labels_of_any_plain_type(write):
    lines = [{"sentence": "null", "class": 0}, {"sentence": "a\nb", "class": "1"}]
    path = write("a.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert to_rows(read_table(path, COLUMNS), ["0", "1"]).columns == {"text": ["null", "a\nb"], "label": [0, 1]}


def test_labels_are_sorted_as_numbers_where_they_are(write):
    numbers = write("a.csv", "sentence,class\n" + "".join(f"s{i},{i}\n" for i in (10, 9, 2)))
    words = write("b.csv", "sentence,class\n" + "".join(f"s,{word}\n" for word in ("no", "10", "9")))
    assert found_labels(read_table(numbers, COLUMNS)) == ("2", "9", "10")
    assert found_labels(read_table(words, COLUMNS)) == ("10", "9", "no")


def test_a_regression(write):
    path = write("a.csv", "sentence,class\nx,1.5\ny,-2e-1\n")
    assert to_rows(read_table(path, COLUMNS), None)["label"] == [1.5, -0.2]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,class\nx,1\n", "line 2: no column 'sentence'; there are 'text', 'class'"),
        ("a.csv", "sentence,class\nx,1\ny,2\n", "line 3: label '2'; allowed are 0, 1"),
        ("a.csv", "sentence,class\nx\n", "line 2: column 'class' holds no value"),
        ("a.csv", "sentence,class\nx,1,2\n", "line 2: more values than the 2 columns"),
        ("a.csv", 'sentence,class\n"x,1\n', "unexpected end of data"),
        ("a.csv", b"sentence,class\nx,1\n\xe9t\xe9,0\n", "line 3: byte 0xe9 is not UTF-8"),
        ("a.tsv", "sentence\tclass\nx\n", "line 2: column 'class' holds no value"),
        ("a.jsonl", '{"sentence": "x", "class": 1}\n{"sentence"\n', "line 2: not JSON"),
        ("a.jsonl", '\n{"sentence": "\\ud800", "class": 1}\n', r"line 2: \ud800 is half of a character"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON that can be read"),
        ("a.jsonl", '{"class": ' + "9" * 5_000 + "}", "line 1: not JSON that can be read"),
        ("a.jsonl", "[1]\n", "line 1: allowed is one JSON object per line"),
        ("a.jsonl", '{"sentence": null, "class": 1}\n', "line 1: column 'sentence' holds no value; allowed is text"),
        ("a.jsonl", '{"sentence": 3, "class": 1}\n', "line 1: column 'sentence' holds 3; allowed is text"),
        ("a.xlsx", "", "allowed are files ending in .csv, .tsv, .jsonl"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(write, name, content, expected):
    assert expected in fault(write(name, content))


@pytest.mark.parametrize("score", ["much", "nan", "inf", "", "5.1"])
def test_a_score_that_is_none_is_an_error(write, score):
    path = write("a.csv", f"sentence,class\nx,1\ny,{score}\n")
    assert f"line 3: score {score!r}; allowed is a number from 0 to 5" in fault(path, labels=None, limits=(0, 5))


@pytest.mark.parametrize("count", [1, 1001])
def test_a_column_that_holds_no_classes_is_an_error(write, count):
    path = write("a.csv", "sentence,class\n" + "".join(f"x,{i}\n" for i in range(count)))
    with pytest.raises(UserError, match=f"{count} different labels; allowed are 2 to 1000"):
        found_labels(read_table(path, COLUMNS))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataMissing, match="no such file"):
        read_table(tmp_path / "a.csv", COLUMNS)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_and_a_pipe_are_no_files(tmp_path, make):
    make(tmp_path / "a.csv")
    assert "cannot be read" in fault(tmp_path / "a.csv")
