import pytest

from transformers_upv2.data.examples import DataError
from transformers_upv2.data.file_patterns import expand_braces, expand_files


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..1}", ["2", "1"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("https://host/{00..01}.tar", ["https://host/00.tar", "https://host/01.tar"]),
        ("{0..1}-of-{x}", ["0-of-{x}", "1-of-{x}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_stand_for_each_of_their_parts(pattern, names):
    assert expand_braces(pattern) == names


def test_patterns_name_existing_files_each_once(tmp_path):
    names = ["a/0.txt", "a/1.txt", "b/deep/0.txt", "a/[x]{y,z}.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")

    def found(*patterns):
        files = expand_files([f"{tmp_path}/{each}" for each in patterns], "text file")
        return [file.removeprefix(f"{tmp_path}/") for file in files]

    assert found("a/?.txt") == ["a/0.txt", "a/1.txt"]
    assert found("a/1.txt", "a/[01].txt") == ["a/1.txt", "a/0.txt"]
    assert found("**/0.txt") == ["a/0.txt", "b/deep/0.txt"]
    assert found("a/{0..1}.txt", "a/[x]{y,z}.txt") == ["a/0.txt", "a/1.txt", "a/[x]{y,z}.txt"]
    assert expand_files(tmp_path / "a" / "0.txt", "text file") == [str(tmp_path / "a" / "0.txt")]
    for missing in ("a/{0..2}.txt", "c/*.txt", "a", "none.txt"):
        with pytest.raises(DataError, match=r": the text file must exist, but there is none\. Give a file"):
            found(missing)
    with pytest.raises(DataError, match=r"an address must name one text file, or several by braces such as \{000\.\."):
        expand_files("https://host/*.txt", "text file")
