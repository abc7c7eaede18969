import io
import json
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from transformers_upv2.data.examples import DataError, reason_of
from transformers_upv2.data.image_text_shards import ImageTextShards
from transformers_upv2.training.streams import ShuffledStream, Stream, StreamedBatches, name_of_bad, own_share

PER_SHARD = 4


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Write nothing."""


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, rows, mode="w"):
    with tarfile.open(path, mode) as archive:
        for key, fields in rows.items():
            for extension, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    for shard in range(4):
        rows = {
            f"{shard:05}{n:04}": {"png": png(shard * 10 + n), "txt": f"picture {shard * 10 + n}".encode()}
            for n in range(PER_SHARD)
        }
        write_tar(tmp_path / f"{shard:05}.tar", rows)
    return str(tmp_path / "*.tar")


def levels(examples):
    return [example["image"].getpixel((0, 0))[0] for example in examples]


ALL = [shard * 10 + n for shard in range(4) for n in range(PER_SHARD)]


def test_tar_shards_are_read_in_order(tars):
    examples = list(ImageTextShards(tars))
    assert levels(examples) == ALL
    assert examples[5]["captions"] == ["picture 11"]
    assert examples[5]["image_id"] == "000010001"
    assert isinstance(ImageTextShards(tars), Stream)


def test_parquet_may_name_the_files_of_its_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(7))
    absolute = str(tmp_path / "images" / "a.png")
    images = [(None, absolute), (None, "images/a.png"), (png(8), "x"), (None, "b.png")]
    rows = [{"image": {"bytes": content, "path": path}, "text": "a"} for content, path in images]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": absolute, "text": "a"}]), tmp_path / "1.parquet")
    *examples, missing, named = ImageTextShards(str(tmp_path / "*.parquet"))
    assert levels([*examples, named]) == [7, 7, 8, 7]
    assert isinstance(missing, DataError)
    assert "b.png: the image file must exist" in str(missing)


def test_parquet_equals_tar(tars, tmp_path):
    rows = [{"image": {"bytes": png(level), "path": None}, "caption": f"picture {level}"} for level in ALL]
    rows += [{"image": {"bytes": png(7), "path": None}, "caption": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    *examples, last = ImageTextShards([str(tmp_path / "0.parquet")])
    assert levels(examples) == ALL
    assert [e["captions"] for e in examples] == [e["captions"] for e in ImageTextShards(tars)]
    with pytest.raises(DataError, match="row 16: there must be a text in one of"):
        raise last


def test_ranks_share_the_shards_and_epochs_reorder_them(tars):
    stream = ImageTextShards(tars)
    parts = [levels(stream.shard(2, index)) for index in (0, 1)]
    assert sorted(parts[0] + parts[1]) == ALL
    assert len(parts[0]) == len(parts[1])
    orders = []
    for epoch in (0, 1, 2, 3):
        stream.set_epoch(epoch)
        orders.append(levels(stream))
        assert sorted(orders[-1]) == ALL
    assert len({tuple(order) for order in orders}) > 2


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_stream_goes_on_where_it_was(tars, epoch, stop):
    stream = ImageTextShards(tars)
    stream.set_epoch(epoch)
    whole = levels(stream)
    iterator = iter(stream)
    head = [next(iterator) for _ in range(stop)]
    other = ImageTextShards(tars)
    other.set_epoch(epoch)
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert levels(head) + levels(other) == whole


def test_bad_examples_and_broken_shards_are_yielded_not_raised(tmp_path):
    rows = {
        "a": {"png": png(1), "json": json.dumps({"caption": "one"}).encode()},
        "b": {"png": b"no image", "txt": b"two"},
        "c": {"txt": b"three"},
        "d": {"png": png(4)},
        "e": {"png": png(5), "json": b"{"},
        "f": {"png": png(6), "txt": b"\xff"},
        "g": {"png": png(7), "txt": b"seven"},
    }
    write_tar(tmp_path / "0.tar", rows)
    (tmp_path / "1.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:540])
    (tmp_path / "2.parquet").write_bytes(b"no parquet")
    found = list(ImageTextShards([str(tmp_path / name) for name in ("0.tar", "1.tar", "2.parquet")]))
    good = [example for example in found if not isinstance(example, DataError)]
    assert [example["captions"] for example in good[:2]] == [["one"], ["seven"]]
    messages = "\n".join(str(error) for error in found if isinstance(error, DataError))
    for part in (
        "0.tar: b: the image file must be readable",
        "0.tar: c: there must be an image in one of",
        "0.tar: d: there must be a text in one of",
        "0.tar: e: `json` must be JSON",
        "0.tar: f: a text must be UTF-8",
        "1.tar: the shard must be readable to its end",
        "2.parquet: the shard must be readable to its end",
    ):
        assert part in messages


BAD_ROWS = [{"image": b"no image", "caption": "x"}, {"image": png(1), "caption": ""}, {"caption": "x"}]


def test_bad_examples_are_told_apart_by_shard_and_row(tmp_path):
    """However often the same fault comes, or the whole shard again."""
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", {n: {"jpg": b"no image", "txt": b"x"} for n in range(10)})
        table = pyarrow.Table.from_pylist(BAD_ROWS * 10)
        pyarrow.parquet.write_table(table, tmp_path / f"{shard}.parquet")
    files = [str(tmp_path / f"{shard}.{kind}") for shard in range(2) for kind in ("tar", "parquet")]
    for stream in (ImageTextShards(files), ShuffledStream(Broken())):
        names = [name_of_bad(reason_of(error)) for _ in range(2) for error in stream]
        assert len(names) == 2 * len(set(names)) > 20


class Broken(list):
    def __len__(self):
        return 15

    def __getitem__(self, index):
        raise DataError("broken")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_fields_of_any_name_are_not_taken_for_our_own(tmp_path, kind):
    if kind == "tar":
        rows = {"a": {"png": png(3), "txt": b"x", "error": b"none", "where": b"Rome"}}
        write_tar(tmp_path / "0.tar", rows)
    else:
        table = pyarrow.Table.from_pylist([{"image": png(3), "text": "x", "error": None, "where": "Rome"}])
        pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    (example,) = ImageTextShards(str(tmp_path / f"0.{kind}"))
    assert (levels([example]), example["captions"]) == ([3], ["x"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": png(1), "caption": None}, "row 0: there must be a text in one of"),
        ({"image": png(1), "caption": float("nan")}, "row 0: a caption must be a text, got nan"),
        ({"image": png(1), "caption": {"en": "x"}}, "row 0: a caption must be a text, got {'en': 'x'}"),
        ({"image": png(1), "caption": ["x", None]}, "row 0: a caption must be a text, got None"),
        ({"image": {"path": None}, "caption": "x"}, "row 0: there must be an image in one of"),
        ({"image": {"path": "a.png"}, "caption": "x"}, "a.png: the image file must exist"),
    ],
)
def test_a_row_of_parquet_without_image_or_text_is_a_bad_example(tmp_path, row, message):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "0.parquet")
    (error,) = ImageTextShards(str(tmp_path / "0.parquet"))
    assert isinstance(error, DataError)
    assert message in str(error)


def test_a_text_of_parquet_that_is_not_utf8_is_a_bad_example(tmp_path):
    texts = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe"))
    table = pyarrow.table({"image": pyarrow.array([png(1)]), "caption": texts})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    (error,) = ImageTextShards(str(tmp_path / "0.parquet"))
    assert "the shard must be readable to its end, but got: 'utf-8' codec can't decode" in str(error)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
def test_no_example_of_a_broken_archive_is_lost_in_silence(tmp_path, mode, share):
    rows = {f"{n:03}": {"png": png(n), "txt": f"picture {n}".encode()} for n in range(60)}
    write_tar(tmp_path / "0.tar", rows, mode)
    assert levels(ImageTextShards(str(tmp_path / "0.tar"))) == list(range(60))
    content = (tmp_path / "0.tar").read_bytes()
    length = int(len(content.rstrip(b"\0")) * share)
    for size in (length, length // 512 * 512):  # between two files as well
        (tmp_path / "0.tar").write_bytes(content[:size])
        *good, error = ImageTextShards(str(tmp_path / "0.tar"))
        assert levels(good) == list(range(len(good)))
        assert "0.tar: the shard must be readable to its end" in str(error)


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    write_tar(tmp_path / "0.tar", {f"{n:03}": {"png": png(n), "txt": b"text"} for n in range(4)})
    content = bytearray((tmp_path / "0.tar").read_bytes())
    content[content.index(b"002.png")] = 255
    (tmp_path / "0.tar").write_bytes(content)
    *good, error = ImageTextShards(str(tmp_path / "0.tar"))
    assert levels(good) == [0]  # the second one may have had more files
    assert "must be readable to its end, but got: bad checksum at byte" in str(error)


def test_what_is_no_shard_is_an_error(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"end in one of \['.parquet', '.tar', '.tar.gz', '.tgz'\], got '.*x.zip'"):
        ImageTextShards([tmp_path / "x.zip"])
    with pytest.raises(DataError, match=r"none\*\.tar: the shard must exist"):
        ImageTextShards(str(tmp_path / "none*.tar"))
    with pytest.raises(DataError, match="at least one shard, got none"):
        ImageTextShards([])


def test_shards_may_be_packed_and_come_from_addresses_with_braces(tmp_path):
    for number, (suffix, mode) in enumerate([("tar.gz", "w:gz"), ("tgz", "w:gz")] * 2):
        write_tar(tmp_path / f"{number // 2}.{suffix}", {"a": {"png": png(number), "txt": b"a"}}, mode)
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{{0..1}}.tar.gz?download=true"
        stream = ImageTextShards([address, str(tmp_path / "{0..1}.tgz")])
        assert stream.num_shards == 4
        assert levels(stream) == [0, 2, 1, 3]
        server.shutdown()


def test_what_is_no_example_in_a_tar_does_not_part_those_that_are(tmp_path):
    files = {"./._a.png": b"mac", "./a.png": png(1), "./._a.txt": b"mac", "./a.txt": b"\xef\xbb\xbfone"}
    files |= {"README": b"?", "b.gif": png(2), "b.json": b'["two", "zwei"]', ".hidden": b"?"}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    examples = list(ImageTextShards(tmp_path / "0.tar"))
    assert levels(examples) == [1, 2]
    assert [example["captions"] for example in examples] == [["one"], ["two", "zwei"]]


def test_examples_of_one_name_do_not_replace_each_other_in_silence(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in [("a.png", png(1)), ("a.txt", b"x"), ("a.PNG", png(2)), ("a.txt", b"y")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (error,) = ImageTextShards(tmp_path / "0.tar")
    assert "0.tar: a: names must be unique in a shard, got a.txt twice." in str(error)


def test_names_with_dots_are_explained(tmp_path):
    write_tar(tmp_path / "0.tar", {"photo.1": {"png": png(1), "txt": b"x"}})
    (error,) = ImageTextShards(tmp_path / "0.tar")
    assert "got ['1.png', '1.txt']. Files of one example must share their name up to its first dot" in str(error)


def batches_of(stream, rank, positions=None, first=0):
    share = own_share(stream, "captioning", (rank, 2), 0)
    reader = StreamedBatches([share], [1.0], 2, lambda examples: {"levels": levels(examples)}, ranks=(rank, 2))
    reader.positions, reader.first_batch = positions or {}, first
    return iter(reader)


def test_loader_workers_share_the_shards(tars):
    reader = StreamedBatches([ImageTextShards(tars)], [1.0], 2, lambda examples: {"levels": levels(examples)})
    items = iter(DataLoader(reader, batch_size=None, num_workers=2))
    assert sorted(level for _ in range(8) for level in next(items)[2]["levels"]) == ALL


def test_the_trainer_reads_and_resumes_it(tars):
    """Two ranks see every picture once an epoch; a reader put where another was goes on like it."""
    seen = []
    for rank in (0, 1):
        batches = batches_of(ImageTextShards(tars), rank)
        read = [next(batches) for _ in range(7)]
        seen += [level for _, _, batch in read[:4] for level in batch["levels"]]
        positions = {0: read[2][1]}
        again = batches_of(ImageTextShards(tars), rank, positions, first=3)
        assert [next(again)[2] for _ in range(4)] == [batch for _, _, batch in read[3:]]
    assert sorted(seen) == ALL
