"""Of the processes of a machine, one prepares and verifies what is in the cache; the others trust its stamp."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from sftkit.data import cache, node
from sftkit.data.contents import content_of, digest_of
from sftkit.errors import DataError, Problem


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def _process(queue, machine, number, caches, fails):
    os.environ |= {"RANK": str(2 * machine + number), "LOCAL_RANK": str(number), "WORLD_SIZE": "4"}
    os.environ |= {"MASTER_ADDR": "here", "MASTER_PORT": "1"}
    if caches:
        os.environ["SFTKIT_CACHE"] += str(machine)
    node.platform.node = lambda: f"machine {machine}"
    hashed, built, checksum = [], [], cache.checksum
    cache.checksum = lambda path: hashed.append(path) or checksum(path)

    def build(directory):
        built.append(1)
        if fails:
            raise DataError(Problem("a row is wrong", "data.train", "correct it"))
        time.sleep(0.3)  # so that the others wait
        (directory / cache.ROWS).write_bytes(b"rows")
        return {}

    try:
        entry, _ = cache.get("key", {}, build)
        outcome = entry.rows.read_bytes().decode()
    except DataError as error:
        outcome = str(error)
    queue.put((machine, number, len(built), len(hashed), outcome))
    queue.close()
    queue.join_thread()
    time.sleep(1)  # a stamp counts as long as the process lives that has written it


def launch(caches=False, fails=False):
    """What each process of two machines with two processes has done: built, hashed, and found."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    places = [(machine, number) for machine in range(2) for number in range(2)]
    processes = [context.Process(target=_process, args=(queue, *place, caches, fails)) for place in places]
    for process in processes:
        process.start()
    found = dict(sorted(((m, n), rest) for m, n, *rest in (queue.get(timeout=60) for _ in processes)))
    for process in processes:
        process.join()
    return found


def test_each_machine_prepares_once_in_its_own_cache():
    assert launch(caches=True) == {
        (0, 0): [1, 1, "rows"],
        (0, 1): [0, 0, "rows"],
        (1, 0): [1, 1, "rows"],
        (1, 1): [0, 0, "rows"],
    }


def test_machines_that_share_a_cache_prepare_once_and_verify_once_each():
    found = launch()
    assert sum(built for built, _, _ in found.values()) == 1
    assert [found[machine, 0][1] for machine in range(2)] == [1, 1]
    assert [found[machine, 1] for machine in range(2)] == [[0, 0, "rows"]] * 2


def test_the_next_launch_verifies_again(tmp_path):
    launch()
    rows = tmp_path / "cache" / "data" / "key" / cache.ROWS
    before = rows.stat()
    rows.write_bytes(b"Rows")  # a damaged bit, which no time shows
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = launch()
    assert {outcome for _, _, outcome in found.values()} == {"rows"}
    assert sum(built for built, _, _ in found.values()) == 1


def test_an_error_of_the_first_process_is_that_of_the_others():
    found = launch(caches=True, fails=True)
    assert {outcome for _, _, outcome in found.values()} == {"data.train: a row is wrong -> correct it"}
    assert [built for built, _, _ in found.values()] == [1, 0, 1, 0]


def test_a_stamp_is_not_trusted_if_the_file_has_changed_or_its_writer_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    file, stamp = tmp_path / "rows", node.Stamp(tmp_path / "stamp")
    file.write_text("rows")
    stamp.write([file])
    assert stamp.trusted()
    file.write_text("other rows")
    assert not stamp.trusted()
    stamp.write([file])
    monkeypatch.setattr("sftkit.data.node._lives", lambda pid, started: False)
    assert not stamp.trusted()


def test_another_process_takes_over_if_the_first_one_never_comes(monkeypatch):
    monkeypatch.setattr("sftkit.data.node.GRACE", 0.3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    entry, existed = cache.get("key", {}, lambda directory: (directory / cache.ROWS).write_bytes(b"rows") and {})
    assert entry.rows.read_bytes() == b"rows"
    assert not existed


def test_the_content_of_a_file_is_read_once_for_each_of_its_states(tmp_path, monkeypatch):
    from sftkit.data import contents

    hashed, checksum = [], contents.checksum
    monkeypatch.setattr(contents, "checksum", lambda path: hashed.append(path) or checksum(path))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    first = digest_of(path)
    assert digest_of(path) == first
    assert len(hashed) == 1
    path.write_text("two")
    os.utime(path, ns=(1, 1))  # the same time and size: the inode's own time tells
    assert digest_of(path) != first
    copied = tmp_path / "elsewhere.jsonl"
    copied.write_text("one")
    assert content_of(str(copied), "data.train")["digest"] == first["digest"]


def test_the_tag_of_a_remote_file_identifies_its_content(monkeypatch):
    class System:
        def __init__(self, tag):
            self.tag = tag

        def info(self, path):
            return {"name": path, "size": 3, "ETag": self.tag, "LastModified": path}

    found = []
    for name, tag in (("s3://one/a.jsonl", "x"), ("s3://two/a.jsonl", "x"), ("s3://one/a.jsonl", "y")):
        monkeypatch.setattr("sftkit.data.contents.filesystem_of", lambda name, where, tag=tag: (System(tag), name))
        found.append(content_of(name, "data.train"))
    assert found[0] == found[1] != found[2]
