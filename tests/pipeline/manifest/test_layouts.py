"""Layouts of data sets: what each lists, what it leaves out, and what it refuses."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.manifest.files import read_manifest
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.read import detect, read_source, read_sources
from pipeline.manifest.manifest import Manifest
from ray_job import main
from tests.support.audio import encode, tone
from tests.support.errors import assert_error_line, assert_names, assert_notes, refused


def write_files(folder: Path, *names: str, content: bytes = b"audio") -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def write_table(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows(manifest: Manifest, *columns: str) -> list[tuple[object, ...]]:
    table = manifest.clips.select(list(columns)).to_pydict()
    return list(zip(*table.values(), strict=True))


# --- ESC-50 ------------------------------------------------------------------------------------

META = "filename,fold,target,category,esc10,src_file,take\n"


def esc50_folder(folder: Path, text: str) -> str:
    write_table(folder / "meta" / "esc50.csv", text)
    return str(folder)


def test_esc10_lists_its_files_labels_and_folds(esc10: Path) -> None:
    manifest = read_source(str(esc10), "auto")
    assert manifest.clips.num_rows == 400
    with (esc10 / "meta" / "esc50.csv").open(encoding="utf-8") as file:
        meta = {row["filename"].rpartition(".")[0]: row for row in csv.DictReader(file)}
    targets = {row["category"]: int(row["target"]) for row in meta.values()}
    assert list(manifest.labels) == sorted(targets, key=targets.__getitem__)
    assert len(manifest.labels) == 10
    for clip_id, uri, labels, fold in rows(manifest, "id", "uri", "labels", "fold"):
        assert isinstance(uri, str)
        assert Path(uri).is_file()
        assert Path(uri).stem == clip_id
        assert labels == [meta[str(clip_id)]["category"]]
        assert fold == int(meta[str(clip_id)]["fold"])
    assert Counter(manifest.clips["fold"].to_pylist()) == dict.fromkeys(range(1, 6), 80)


def test_esc50_keeps_the_order_of_the_class_numbers(tmp_path: Path) -> None:
    text = META + "1-1-A-10.wav,1,10,ant,,,\n2-2-A-2.wav,2,2,zebra,,,\n"
    manifest = read_source(esc50_folder(tmp_path, text), "auto")
    assert manifest.labels == ("zebra", "ant")
    assert rows(manifest, "id", "uri", "fold", "split") == [
        ("1-1-A-10", f"{tmp_path}/audio/1-1-A-10.wav", 1, "train"),
        ("2-2-A-2", f"{tmp_path}/audio/2-2-A-2.wav", 2, "train"),
    ]


@pytest.mark.parametrize(
    ("text", "where", "values"),
    [
        (
            "filename,fold,category\na.wav,1,dog\n",
            "esc50.csv",
            ["no column target", "filename, fold, category"],
        ),
        ("", "esc50.csv", ["no column filename, fold, target, category"]),
        (META + ",1,0,dog,,,\n", "esc50.csv, line 2", ["filename", "empty"]),
        (META + "\na.wav,1,0,,,,\n", "esc50.csv, line 3", ["category", "empty"]),
        (META + "a.wav,one,0,dog,,,\n", "esc50.csv, line 2", ["fold", "target", "'one'"]),
        (META + "a.wav,1,,dog,,,\n", "esc50.csv, line 2", ["fold", "target", "''"]),
        (META + "a.wav,1,0,dog,,,\nb.wav,1,0,cat,,,\n", "esc50.csv", ["class", "two"]),
        (META + "a.wav,1,0,dog,,,\nb.wav,1,1,dog,,,\n", "esc50.csv", ["class", "two"]),
        (META, "", ["no clip", "'esc50'"]),
        (META + '"a.wav' + "x" * 200_000, "esc50.csv, line 2", ["quote"]),
    ],
)
def test_broken_esc50_is_refused(
    tmp_path: Path, text: str, where: str, values: list[object]
) -> None:
    with refused(tmp_path / "meta" / where if where else tmp_path, *values):
        read_source(esc50_folder(tmp_path, text), "auto")


def test_esc50_without_its_table_is_refused(tmp_path: Path) -> None:
    with refused("meta/esc50.csv", "no such file"):
        read_source(write_files(tmp_path, "audio/a.wav"), "esc50")


# --- a table -----------------------------------------------------------------------------------


def test_csv_with_every_column(tmp_path: Path) -> None:
    text = (
        "\ufeffpath , labels , id, split, fold, start_s, end_s, comment\n"
        'a b.wav, dog; rain ,first,eval,2,0.5,1.5,"x, y"\n'
        "/else/where.flac,rain,,,,,,\n"
        "s3://bucket/c.ogg,,,,,,,\n"
        "sub/d.wav,,,,1.0,,,\n"
    )
    manifest = read_source(write_table(tmp_path / "clips.csv", text), "auto")
    assert manifest.labels == ("dog", "rain")
    columns = ("id", "uri", "labels", "split", "fold", "start_s", "end_s")
    assert rows(manifest, *columns) == [
        ("first", f"{tmp_path}/a b.wav", ["dog", "rain"], "eval", 2, 0.5, 1.5),
        ("/else/where.flac", "/else/where.flac", ["rain"], "train", 0, None, None),
        ("s3://bucket/c.ogg", "s3://bucket/c.ogg", [], "train", 0, None, None),
        ("sub/d.wav", f"{tmp_path}/sub/d.wav", [], "train", 1, None, None),
    ]
    assert_notes(manifest.notes, ["2 clips", "label"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_cells_may_be_separated_by_other_signs(tmp_path: Path, delimiter: str) -> None:
    text = 'path,labels,fold\na.wav,"dog;rain",2\n"b, c; d.wav",rain,1\n'
    if delimiter != ",":
        text = text.replace(",", delimiter).replace(f"b{delimiter}", "b,")
    for newline, encoding in (("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\r\n", "utf-16")):
        source = tmp_path / "clips.csv"
        source.write_bytes(text.replace("\n", newline).encode(encoding))
        manifest = read_source(str(source), "auto")
        assert rows(manifest, "id", "labels", "fold") == [
            ("a.wav", ["dog", "rain"], 2),
            ("b, c; d.wav", ["rain"], 1),
        ]
        assert not manifest.notes


def test_table_without_a_header_has_path_and_labels_first(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.txt", "a.wav\tdog\t1\nsub/b.flac\train;dog\t2\n")
    manifest = read_source(source, "auto")
    assert rows(manifest, "uri", "labels", "fold") == [
        (f"{tmp_path}/a.wav", ["dog"], 0),
        (f"{tmp_path}/sub/b.flac", ["rain", "dog"], 0),
    ]
    assert_notes(manifest.notes, ["no header", "--column path=1", "--column labels=2"])


def test_columns_of_a_table_without_a_header_have_numbers(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", "0,dog,a,3\n1,rain,b,4\n")
    columns = {"path": "audio/{3}.wav", "labels": "2", "id": "1", "fold": "4"}
    manifest = read_source(source, "auto", SourceOptions(columns=columns))
    assert rows(manifest, "id", "uri", "labels", "fold") == [
        ("0", f"{tmp_path}/audio/a.wav", ["dog"], 3),
        ("1", f"{tmp_path}/audio/b.wav", ["rain"], 4),
    ]
    with refused("clips.csv", "no column 5", "4 columns"):
        read_source(source, "auto", SourceOptions(columns={"path": "5"}))


def test_names_of_columns_may_be_in_any_case(tmp_path: Path) -> None:
    text = "Path,LABELS,Split,FOLD,ID,path_\nsub\\\\a.wav,dog,test,2,one,x\n"
    manifest = read_source(write_table(tmp_path / "clips.csv", text), "auto")
    assert rows(manifest, "id", "uri", "labels", "split", "fold") == [
        ("one", f"{tmp_path}/sub/a.wav", ["dog"], "test", 2)
    ]
    with refused("clips.csv", "two columns", "'split'"):
        text = "path,labels,Split,SPLIT\na,b,test,train\n"
        read_source(write_table(tmp_path / "clips.csv", text), "auto")
    text = "path,labels,Path\na.wav,dog,other\n"
    manifest = read_source(write_table(tmp_path / "clips.csv", text), "auto")
    assert rows(manifest, "uri") == [(f"{tmp_path}/a.wav",)]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("~/a.wav", "/home/me/a.wav"),
        ("~\\sub\\a.wav", "/home/me/sub/a.wav"),
        ("~1.wav", "{folder}/~1.wav"),
        (".\\sub\\a.wav", "{folder}/sub/a.wav"),
        ("../a.wav", "{parent}/a.wav"),
        ("/a.wav", "/a.wav"),
        ("s3://bucket/a.wav", "s3://bucket/a.wav"),
    ],
)
def test_paths_are_relative_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, uri: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    source = write_table(tmp_path / "clips.csv", f"path,labels\n{path},dog\n")
    assert rows(read_source(source, "auto"), "uri") == [
        (uri.format(folder=tmp_path, parent=tmp_path.parent),)
    ]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a.wav;dog, wet\n", "dog, wet"),
        ("path;labels;a, b, c, d\na.wav;dog, wet;\n", "dog, wet"),
        ("path|labels\na.wav|dog, wet\n", "dog, wet"),
        ("sep=;\r\npath;labels\r\na.wav;dog, wet\r\n", "dog, wet"),
    ],
)
def test_cells_are_separated_by_the_sign_beside_a_known_one(
    tmp_path: Path, text: str, label: str
) -> None:
    manifest = read_source(write_table(tmp_path / "clips.csv", text), "auto")
    assert rows(manifest, "id", "labels") == [("a.wav", [label])]


def test_labels_may_have_another_separator(tmp_path: Path) -> None:
    text = "path,labels\na.wav,dog|rain\nb.wav,cat|rain\nc.wav,cat\n"
    source = write_table(tmp_path / "clips.csv", text)
    assert read_source(source, "auto").labels == ("cat", "cat|rain", "dog|rain")
    manifest = read_source(source, "auto", SourceOptions(separator="|"))
    assert manifest.labels == ("cat", "dog", "rain")
    assert not manifest.notes


def test_audio_in_two_splits_is_noted(tmp_path: Path) -> None:
    text = "path,labels,id,split,end_s\na.wav,dog,1,train,\na.wav,dog,2,test,\nb.wav,dog,3,test,1\n"
    source = write_table(tmp_path / "clips.csv", text + "b.wav,dog,4,train,2\n")
    assert_notes(read_source(source, "auto").notes, ["1 clip", "another split", "a.wav"])


def test_each_of_several_tables_needs_a_split(tmp_path: Path) -> None:
    dev = write_table(tmp_path / "dev.csv", "path,labels,split\na.wav,dog,train\n")
    bare = write_table(tmp_path / "eval.csv", "path,labels\nb.wav,dog\n")
    some = write_table(tmp_path / "some.csv", "path,labels,split\nb.wav,dog,x\nc.wav,dog,\n")
    for table in (bare, some):
        with refused(table, "split", remedy=f"eval={table}"):
            read_sources([dev, table], "auto", SourceOptions())
    manifest = read_sources([dev, f"eval={some}"], "auto", SourceOptions())
    assert manifest.clips["split"].to_pylist() == ["train", "x", "eval"]


def test_several_tables_make_one_manifest(tmp_path: Path) -> None:
    text = 'fname,labels,mids,split\n64760,"Bark,Dog",/m/b,train\n2,Cat,/m/c,val\n'
    dev = write_table(tmp_path / "ground_truth" / "dev.csv", text)
    text = "fname,labels,mids\n37199,Cat,/m/c\n"
    eval_ = write_table(tmp_path / "ground_truth" / "eval.csv", text)
    options = SourceOptions(
        columns={"path": "../FSD50K.{table}_audio/{fname}.wav", "id": "fname"}, separator=","
    )
    manifest = read_sources([dev, f"eval={eval_}"], "auto", options)
    assert manifest.labels == ("Bark", "Cat", "Dog")
    assert rows(manifest, "id", "uri", "labels", "split") == [
        ("64760", f"{tmp_path}/FSD50K.dev_audio/64760.wav", ["Bark", "Dog"], "train"),
        ("2", f"{tmp_path}/FSD50K.dev_audio/2.wav", ["Cat"], "val"),
        ("37199", f"{tmp_path}/FSD50K.eval_audio/37199.wav", ["Cat"], "eval"),
    ]
    with refused(tmp_path, "only tables"):
        read_sources([dev, str(tmp_path)], "auto", options)
    with refused(tmp_path / "none.csv", "no such file"):
        read_sources([dev, str(tmp_path / "none.csv")], "auto", options)


def test_clips_of_two_tables_need_different_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.csv", "path,labels\nx.wav,dog\n")
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "train=a.csv", "test=b.csv", "--out", "m.parquet"]) == 1
    tables = f"{tmp_path}/a.csv, {tmp_path}/b.csv"
    assert_error_line(capsys.readouterr().err, tables, "x.wav", "unique")


def test_tsv_with_a_vocabulary_beside_it(tmp_path: Path) -> None:
    write_table(tmp_path / "labels.txt", "rain\nnever heard\nbark, howl\n")
    text = "labels\tpath\nbark, howl;rain\ta.wav\n"
    manifest = read_source(write_table(tmp_path / "clips.tsv", text), "auto")
    assert manifest.labels == ("rain", "never heard", "bark, howl")
    assert manifest.clips["labels"].to_pylist() == [["bark, howl", "rain"]]


@pytest.mark.parametrize(
    ("text", "where", "values"),
    [
        ("path,label\na.wav,dog\n", "clips.csv", ["no column labels", "path, label"]),
        ("path,labels\n,dog\n", "clips.csv, line 2", ["path", "empty"]),
        ("path,labels,fold\n\na,dog,1\n \nb,dog,x\n", "clips.csv, line 5", ["fold", "'x'"]),
        ("path,labels,start_s\na,dog,1:30\n", "clips.csv, line 2", ["start_s", "'1:30'"]),
        ("path,labels,fold\na,dog,1.5\n", "clips.csv, line 2", ["fold", "'1.5'"]),
        ("path,labels\n", "clips.csv", ["header"]),
        ('path,labels\n\n"a.wav,dog\nb.wav,cat\n', "clips.csv, line 3", ["quote"]),
        ("path,labels\na.wav,dog,cat\n", "clips.csv, line 2", ["3 cells", 2, "','"]),
        ('path,labels\n"a\n.wav",dog\nb.wav\n', "clips.csv, line 4", ["1 cells", 2]),
        ("path,labels,labels\na,b,c\n", "clips.csv", ["two columns", "'labels'"]),
        ("path;label\na;b\n", "clips.csv", ["no column labels", "path, label"]),
        ("path,labels\na.wav,\nb.wav, ;\n", "clips.csv", ["none of 2", "label"]),
        ("path,labels\n\nC:\\\\a.wav,dog\n", "clips.csv, line 3", ["Windows", "relative"]),
        ("path,labels\n\\\\server\\a.wav,dog\n", "clips.csv, line 2", ["Windows", "relative"]),
        ("path,labels\na\x07.wav,dog\n", "clips.csv, line 2", ["control"]),
        ("path,labels,split\na.wav,dog,a/b\n", "clips.csv, line 2", ["a/b"]),
        ("path,labels,fold\na.wav,dog,-1\n", "clips.csv, line 2", ["fold", -1]),
        ("path,labels,fold\na.wav,dog,9999999999\n", "clips.csv, line 2", ["fold", 9999999999]),
        ("path,labels,start_s\na.wav,dog,-1\n", "clips.csv, line 2", ["start_s", -1.0]),
        ("path,labels,start_s\na.wav,dog,nan\n", "clips.csv, line 2", ["start_s", "nan"]),
        ("path,labels,start_s,end_s\na,dog,2,2\n", "clips.csv, line 2", ["start_s", "end_s", 2.0]),
        ("path,labels,end_s\na,dog,inf\n", "clips.csv, line 2", ["end_s", "inf"]),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, text: str, where: str, values: list[object]) -> None:
    with refused(where, *values):
        read_source(write_table(tmp_path / "clips.csv", text), "auto")


def test_missing_or_binary_csv_is_refused(tmp_path: Path) -> None:
    with refused("none.csv", "no such file"):
        read_source(str(tmp_path / "none.csv"), "auto")
    (tmp_path / "clips.csv").write_bytes(b"path,labels\n\xff\xfe,dog\n")
    with refused("clips.csv", "UTF-8"):
        read_source(str(tmp_path / "clips.csv"), "auto")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_beside_a_table_may_be_in_utf_16(tmp_path: Path, encoding: str) -> None:
    source = write_table(tmp_path / "clips.csv", "path,labels\na.wav,dog\n")
    (tmp_path / "labels.txt").write_text("rain\ndog\n", encoding=encoding)
    (tmp_path / "ids.txt").write_text("a\n", encoding=encoding)
    manifest = read_source(source, "auto", SourceOptions(common_ids=str(tmp_path / "ids.txt")))
    assert manifest.labels == ("rain", "dog")
    assert manifest.clips["common"].to_pylist() == [True]
    for name in ("clips.csv", "labels.txt"):
        (tmp_path / name).write_text("path,labels\na.wav,dog\n", encoding="utf-16-le")
        with refused(tmp_path / name, "null", remedy="UTF-8"):
            read_source(source, "auto")
        write_table(tmp_path / "clips.csv", "path,labels\na.wav,dog\n")


def test_csv_columns_can_be_renamed(tmp_path: Path) -> None:
    text = 'fname,tags,mids,split,part one\n64760,"Bark, Dog",/m/b,val,3\n2,Cat,/m/c,train,1\n'
    source = write_table(tmp_path / "meta" / "dev.csv", text)
    columns = {
        "path": "../audio.{split}/{fname}.wav",
        "id": "fname",
        "labels": "tags",
        "fold": "part one",
    }
    manifest = read_source(source, "csv", SourceOptions(columns=columns, separator=","))
    assert rows(manifest, "id", "uri", "labels", "split", "fold") == [
        ("64760", f"{tmp_path}/audio.val/64760.wav", ["Bark", "Dog"], "val", 3),
        ("2", f"{tmp_path}/audio.train/2.wav", ["Cat"], "train", 1),
    ]


@pytest.mark.parametrize(
    ("columns", "where", "values"),
    [
        ({"lables": "tags"}, "--column lables=...", ["'lables'", "did you mean labels?"]),
        ({"text": "tags"}, "--column text=...", ["'text'", "path, labels, id"]),
        ({"labels": "tags"}, "clips.csv", ["no column tags", "path, labels"]),
        ({"path": "{folder}/{path}"}, "clips.csv", ["no column folder", "path, labels"]),
    ],
)
def test_missing_columns_are_refused(
    tmp_path: Path, columns: dict[str, str], where: str, values: list[str]
) -> None:
    source = write_table(tmp_path / "clips.csv", "path,labels\na.wav,dog\n")
    with refused(where, *values):
        read_source(source, "csv", SourceOptions(columns=columns))


@pytest.mark.parametrize(
    ("header", "columns", "group", "remedy"),
    [
        ("path,label", {}, "", "did you mean --column labels=label?"),
        ("path;Class Name", {}, "", "did you mean --column 'labels=Class Name'?"),
        ("File,category", {}, "", "--column labels=category --column path=File?"),
        ("path,label", {"labels": "lable"}, "", "did you mean --column labels=label?"),
        ("path,label", {"labels": "tags"}, "", "did you mean --column labels=label?"),
        ("name,labels", {"path": "a/{nmae}.wav"}, "", "--column 'path=a/{name}.wav'?"),
        ("path,labels,speaker", {}, "spekar", "did you mean --group speaker?"),
        ("path,labels,speaker", {}, "{table}/{spekar}", "--group '{table}/{speaker}'?"),
        ("path,what", {}, "", "name the right one with --column labels=NAME"),
        ("x,labels", {"path": "{y}/{x}"}, "", "--column 'path={NAME}/{x}'"),
    ],
)
def test_a_missing_column_gets_a_suggestion(
    tmp_path: Path, header: str, columns: dict[str, str], group: str, remedy: str
) -> None:
    source = write_table(tmp_path / "clips.csv", f"{header}\n")
    with refused("clips.csv", "no column", "it has") as caught:
        read_source(source, "csv", SourceOptions(columns=columns, group=group))
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", ["clips.CSV", "clips.Tsv", "clips.TXT"])
def test_suffixes_of_tables_may_be_in_any_case(tmp_path: Path, name: str) -> None:
    text = "path\tlabels\na.wav\tdog, wet\n"
    manifest = read_source(write_table(tmp_path / name, text))
    assert rows(manifest, "id", "labels") == [("a.wav", ["dog, wet"])]


def test_csv_rows_without_a_split_get_the_given_one(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", "path,labels,split\na.wav,dog,\nb.wav,dog,test\n")
    manifest = read_source(source, "csv", SourceOptions(split="eval"))
    assert manifest.clips["split"].to_pylist() == ["eval", "test"]


# --- a folder per class ------------------------------------------------------------------------


def test_folders_become_classes(tmp_path: Path) -> None:
    source = write_files(
        tmp_path, "rain/2.FLAC", "dog/a.wav", "dog/puppy/b.ogg", "dog/notes.txt", "README", "x.wav"
    )
    manifest = read_source(source, "auto")
    assert manifest.labels == ("dog", "rain")
    assert rows(manifest, "id", "uri", "labels", "split") == [
        ("dog/a.wav", f"{source}/dog/a.wav", ["dog"], "train"),
        ("dog/puppy/b.ogg", f"{source}/dog/puppy/b.ogg", ["dog"], "train"),
        ("rain/2.FLAC", f"{source}/rain/2.FLAC", ["rain"], "train"),
    ]
    assert_notes(manifest.notes, [2, "1 .txt", "1 README"], [1, "class folder"])


def test_unusable_names_cost_only_their_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["dog/1.wav", "dog/2.wav"]
    unusable = ["dog/a\tb.wav", "dog/c\nd.wav", "r\ta/1.wav"]
    source = write_files(tmp_path / "in", *names, *unusable, content=encode(tone(0.1, 16_000)))
    out = str(tmp_path / "m.parquet")
    assert main(["manifest", source, "--out", out]) == 0
    assert read_manifest(out).clips["id"].to_pylist() == names
    [line] = [line for line in capfd.readouterr().err.splitlines() if "names must" in line]
    assert_names(line, source, 3)
    assert "\t" not in line


def test_folders_named_after_splits_become_splits(tmp_path: Path) -> None:
    source = write_files(
        tmp_path, "Train/dog/1.wav", "val/dog/2.wav", "test/rain/3.wav", "eval/loose.wav"
    )
    manifest = read_source(source, "auto")
    assert rows(manifest, "id", "labels", "split") == [
        ("Train/dog/1.wav", ["dog"], "train"),
        ("test/rain/3.wav", ["rain"], "test"),
        ("val/dog/2.wav", ["dog"], "validation"),
    ]
    assert_notes(manifest.notes, [1, "class folder"])


@pytest.mark.parametrize(
    ("names", "values"),
    [
        # GTZAN and UrbanSound8K, a folder too high; and the latter's folds.
        (["genres/blues/1.au", "genres/rock/2.au"], [2, "'genres'", "class"]),
        (["audio/fold1/1.wav", "metadata/a.csv"], [1, "'audio'", "class"]),
        (["train/clips/dog/1.wav", "test/clips/dog/1.wav"], [2, "'clips'", "class"]),
        (["fold1/1.wav", "fold10/2.wav"], ["folds", "fold1, fold10"]),
    ],
)
def test_folders_that_are_no_classes_are_refused(
    tmp_path: Path, names: list[str], values: list[object]
) -> None:
    source = write_files(tmp_path, *names)
    with refused(source, *values, remedy="labels"):
        read_source(source, "auto")


def test_classes_within_folders_of_another_kind_are_warned_of(tmp_path: Path) -> None:
    names = ("anna/one/1.wav", "anna/two/1.wav", "bob/one/1.wav", "bob/two/1.wav")
    manifest = read_source(write_files(tmp_path / "a", *names), "auto")
    assert_notes(manifest.warnings, ["anna, bob", "one, two", "table", "labels"])
    split = read_source(write_files(tmp_path / "b", *(f"train/{name}" for name in names)), "auto")
    assert_notes(split.warnings, ["anna, bob", "one, two"])
    for number, fine in enumerate(
        (
            (*names, "anna/3.wav"),
            ("dog/puppy/1.wav", "cat/kitten/1.wav"),
            ("train/dog/1.wav", "train/cat/1.wav", "test/dog/1.wav"),
        )
    ):
        folder = write_files(tmp_path / str(number), *fine)
        assert read_source(folder, "auto").warnings == ()


def test_a_class_may_be_called_train_beside_others(tmp_path: Path) -> None:
    manifest = read_source(write_files(tmp_path, "train/1.wav", "tram/2.wav"), "auto")
    assert rows(manifest, "labels", "split") == [(["train"], "train"), (["tram"], "train")]


@pytest.mark.parametrize(
    ("name", "values"),
    [("notes.txt", ["no clip", "'folder'", "1 .txt"]), ("loose.wav", [1, "no class folder"])],
)
def test_a_folder_without_classes_is_refused(
    tmp_path: Path, name: str, values: list[object]
) -> None:
    with refused(tmp_path / "x", *values, remedy=True):
        read_source(write_files(tmp_path / "x", name), "auto")


def test_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none"):
        with refused(source, "no such file or folder"):
            read_source(str(source), "auto")


@pytest.mark.parametrize("layout", ["folder", "audioset"])
def test_audio_file_as_source_is_refused(tmp_path: Path, layout: str) -> None:
    source = write_files(tmp_path, "dog/1.wav")
    table = write_table(tmp_path / "segments.csv", "--PJHxphWEs, 0, 10, /m/a\n")
    write_table(tmp_path / "class_labels_indices.csv", "index,mid,display_name\n0,/m/a,Dog\n")
    options = SourceOptions(segments=(f"train={table}",))
    with refused(f"{source}/dog/1.wav", "layout", remedy="folder"):
        read_source(f"{source}/dog/1.wav", layout, options)


# --- options -----------------------------------------------------------------------------------


def test_options_without_effect_are_noted(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "folder", "dog/1.wav")
    table = write_table(tmp_path / "clips.csv", "path,labels,split\na.wav,dog,test\n")
    options = SourceOptions(split="mine", separator=",", cut="yes", class_labels="/x.csv")
    manifest = read_source(folder, "auto", options)
    assert manifest.clips["split"].to_pylist() == ["mine"]
    unread = ("--class-labels", "--cut", "--separator")
    assert_notes(manifest.notes, *([option, "no effect", "'folder'"] for option in unread))
    notes = read_source(table, "auto", SourceOptions(split="mine", separator=",")).notes
    assert_notes(notes, ["--split mine", "no effect"])


def test_esc50_clips_get_the_given_split(tmp_path: Path) -> None:
    source = esc50_folder(tmp_path, META + "a.wav,1,0,dog,,,\n")
    manifest = read_source(source, "auto", SourceOptions(split="mine"))
    assert (manifest.clips["split"].to_pylist(), manifest.notes) == (["mine"], ())


def test_an_empty_separator_is_refused() -> None:
    with refused("--separator", "empty"):
        SourceOptions(separator="")


def test_zero_folds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_files(tmp_path, "dog/1.wav")
    command = ["manifest", source, "--out", f"{tmp_path}/m.parquet", "--folds", "0"]
    assert main(command) == 1
    assert_error_line(capsys.readouterr().err, "--folds", 2, 100, "got 0")


# --- on S3 -------------------------------------------------------------------------------------


def test_layouts_are_detected_and_read_in_a_bucket(s3: str) -> None:
    for name in ("dog/1.wav", "rain/2.wav", "rain/notes.txt"):
        storage.write_bytes(f"{s3}/classes/{name}", b"audio")
    storage.write_bytes(f"{s3}/classes-beside/cat/3.wav", b"audio")
    storage.write_bytes(f"{s3}/esc/meta/esc50.csv", (META + "a.wav,1,0,dog,,,\n").encode())
    storage.write_bytes(f"{s3}/table/clips.csv", b"path,labels\naudio/x.wav,dog\n")
    storage.write_bytes(f"{s3}/table/labels.txt", b"cat\ndog\n")
    assert [detect(f"{s3}/{name}") for name in ("classes", "esc", "table/clips.csv")] == [
        "folder",
        "esc50",
        "csv",
    ]
    classes = read_source(f"{s3}/classes", "auto")
    assert rows(classes, "id", "uri") == [
        ("dog/1.wav", f"{s3}/classes/dog/1.wav"),
        ("rain/2.wav", f"{s3}/classes/rain/2.wav"),
    ]
    assert_notes(classes.notes, [1, "1 .txt"])
    esc = read_source(f"{s3}/esc", "auto")
    assert rows(esc, "id", "uri") == [("a", f"{s3}/esc/audio/a.wav")]
    table = read_source(f"{s3}/table/clips.csv", "auto")
    assert table.labels == ("cat", "dog")
    assert rows(table, "uri") == [(f"{s3}/table/audio/x.wav",)]


@pytest.mark.usefixtures("s3")
def test_source_in_a_missing_bucket_is_refused() -> None:
    with refused("s3://no-such-bucket", "bucket", remedy="endpoint"):
        read_source("s3://no-such-bucket/esc", "auto")


# --- which files are audio -----------------------------------------------------------------------


def test_audio_is_told_by_content_where_the_suffix_says_nothing(tmp_path: Path) -> None:
    sound = encode(tone(0.1, 16_000))
    audio = ("dog/a.MKV", "dog/b.mka", "dog/c.weba", "dog/d.wave", "cat/e.aifc", "cat/f.3gp")
    write_files(tmp_path, *audio)
    write_files(tmp_path, "cat/g", "cat/h.recording", "cat/i.XYZ", content=sound)
    write_files(tmp_path, "cat/j.npy", "cat/k.txt", "dog/l.png", content=b"no sound at all")
    write_files(tmp_path, "dog/._a.MKV", "dog/.DS_Store", "dog/._m.wav")
    write_files(tmp_path, "dog/half.webm.part", content=sound)
    manifest = read_source(str(tmp_path), "auto")
    assert sorted(manifest.clips["id"].to_pylist()) == sorted(
        [*audio, "cat/g", "cat/h.recording", "cat/i.XYZ"]
    )
    assert_notes(
        manifest.notes,
        ["left out 3 hidden files", "dog/.DS_Store"],
        ["left out 4 files", ".npy", ".part", ".png"],
    )
