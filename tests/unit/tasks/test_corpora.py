import json

import pandas
import pytest

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.corpora import LAYOUTS, linearised, read_folder, read_split

TRIPLES = [["A_Wizard", "country", "Japan"], ["A_Wizard", "title", "Mars | Base"]]
MR = "A Wizard : country : Japan"


def write_csv(folder, names=("trainset.csv", "devset.csv", "testset_w_refs.csv"), header="mr,ref"):
    for i, name in enumerate(names):
        lines = [header, f'"name[A{i}], food[B]","A{i} serves ""B"", café."', f'"name[A{i}], food[B]",Second  text']
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def test_e2es_own_csv_files(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "testset.csv").write_text("mr\nno references here\n")
    read = read_folder(tmp_path, LAYOUTS["e2e"])
    assert read["test"].pairs == [("name[A2], food[B]", 'A2 serves "B", café.'), ("name[A2], food[B]", "Second text")]
    assert read["train"].by_mr() == {"name[A0], food[B]": ['A0 serves "B", café.', "Second text"]}


def test_the_hubs_parquet_copy_in_a_folder(tmp_path):
    for split in ("train", "validation", "test"):
        folder = tmp_path / "default" / split
        folder.mkdir(parents=True)
        rows = {"meaning_representation": ["m"], "human_reference": [split]}
        pandas.DataFrame(rows).to_parquet(folder / "0000.parquet")
    read = read_folder(tmp_path, LAYOUTS["e2e"])
    assert {split: part.pairs for split, part in read.items()} == {
        split: [("m", split)] for split in ("train", "validation", "test")
    }
    dart = {"tripleset": [TRIPLES], "annotations": [{"source": ["s", "s"], "text": ["One.", "Two."]}]}
    for split in ("train", "validation", "test"):
        pandas.DataFrame(dart).to_parquet(tmp_path / "default" / split / "0000.parquet")
    assert [text for _, text in read_folder(tmp_path, LAYOUTS["dart"])["test"].pairs] == ["One.", "Two."]


def test_dart_as_released_and_as_on_the_hub(tmp_path):
    entry = {"tripleset": TRIPLES, "subtree_was_extended": False}
    annotations = [{"source": "s", "text": "One."}, {"source": "s", "text": "Two."}]
    for split in ("train", "dev", "test"):
        path = tmp_path / f"dart-v1.1.1-full-{split}.json"
        path.write_text(json.dumps([entry | {"annotations": annotations}]))
    read = read_folder(tmp_path, LAYOUTS["dart"])
    mr = "A_Wizard : country : Japan | A_Wizard : title : Mars | Base"
    assert read["train"].pairs == read["validation"].pairs == [(mr, "One."), (mr, "Two.")]
    hub = entry | {"annotations": {"source": ["s", "s"], "text": ["One.", "Two."]}}
    assert read_split([hub], LAYOUTS["dart"], "hub") == read["test"]


WEBNLG = {
    "released": {
        "modifiedtripleset": [{"subject": "A Wizard", "property": "country", "object": "Japan"}],
        "lexicalisations": [{"lex": "It is Japan's.", "comment": "good"}, {"lex": "Bad.", "comment": "toFix"}],
    },
    "hub": {
        "modified_triple_sets": {"mtriple_set": [["A Wizard | country | Japan"]]},
        "lex": {"text": ["It is Japan's.", "Bad."], "comment": ["good", "toFix"]},
    },
    "gem": {"input": ["A Wizard | country | Japan"], "references": [], "target": "It is Japan's."},
}


@pytest.mark.parametrize("form", WEBNLG)
def test_webnlg_in_each_of_its_forms(form):
    assert read_split([WEBNLG[form]], LAYOUTS["webnlg"], "w").pairs == [(MR, "It is Japan's.")]


def test_webnlgs_numbered_entries(tmp_path):
    for name in ("train", "dev", "test"):
        content = {"entries": [{"1": WEBNLG["released"]}, {"2": WEBNLG["released"]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_folder(tmp_path, LAYOUTS["webnlg"])["test"].pairs == [(MR, "It is Japan's.")] * 2


def test_an_mr_without_references_is_left_out():
    nothing = WEBNLG["hub"] | {"lex": {"text": [], "comment": []}}
    assert read_split([nothing, WEBNLG["hub"]], LAYOUTS["webnlg"], "w").pairs == [(MR, "It is Japan's.")]


def test_mrs_whose_texts_were_all_refused_are_named(tmp_path):
    refused = WEBNLG["released"] | {"lexicalisations": [{"lex": "Bad.", "comment": "toFix"}]}
    for name in ("train", "dev", "test"):
        content = {"entries": [{"1": WEBNLG["released"]}] + [{"2": refused}] * (name == "test")}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    read = read_folder(tmp_path, LAYOUTS["webnlg"])
    assert read["test"].pairs == [(MR, "It is Japan's.")]
    assert {split: part.without_reference for split, part in read.items()} == {
        "train": [], "validation": [], "test": [MR],
    }  # fmt: skip


def test_triples_are_one_line():
    assert linearised([("a ", "b", 3), ("c", "d", "e")]) == "a : b : 3 | c : d : e"


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataMissing, match=r"no file of the train split; wanted is trainset.csv"):
        read_folder(tmp_path, LAYOUTS["e2e"])
    write_csv(tmp_path, header="meaning,text")
    with pytest.raises(UserError, match=r"trainset.csv, record 1: KeyError.*there is meaning, text"):
        read_folder(tmp_path, LAYOUTS["e2e"])
    write_csv(tmp_path)
    (tmp_path / "devset.csv").write_text("mr,ref\nm,\n")
    with pytest.raises(UserError, match=r"devset.csv, record 1: holds no text"):
        read_folder(tmp_path, LAYOUTS["e2e"])
    (tmp_path / "devset.csv").write_text('mr,ref\n"m,r\n')
    with pytest.raises(UserError, match=r"devset.csv, line \d"):
        read_folder(tmp_path, LAYOUTS["e2e"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("[{", "line 1: not JSON"), ('{"rows": 3}', "a list of records"), ("[3]", "record 1: TypeError.*there is int")],
)
def test_a_broken_json_file_is_said(tmp_path, text, said):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_folder(tmp_path, LAYOUTS["webnlg"])


def test_a_broken_parquet_file_is_said(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_folder(tmp_path, LAYOUTS["e2e"])


def test_e2e_as_it_is(e2e_data):
    read = {split: part.by_mr() for split, part in read_folder(e2e_data, LAYOUTS["e2e"]).items()}
    counts = {split: (len(found), sum(map(len, found.values()))) for split, found in read.items()}
    assert counts == {"train": (4862, 42061), "validation": (547, 4672), "test": (630, 4693)}
