import os
import sys
from pathlib import Path

import pytest

from companion.files import atomic_path, remove_leftovers


def test_takes_the_place_of_the_file_only_when_the_block_ends(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("before", ["old", None])
def test_a_block_that_raises_leaves_the_folder_as_it_was(tmp_path, before):
    path = tmp_path / "notes.txt"
    if before is not None:
        path.write_text(before)

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    kept = {} if before is None else {"notes.txt": before}
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == kept


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "notes.txt").write_text("new")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "notes.txt").read_text() == "new"

    def write_half():
        with atomic_path(tmp_path / "other") as temporary:
            temporary.mkdir()
            (temporary / "notes.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens no folder")
@pytest.mark.parametrize("folder", [False, True])
def test_it_is_on_the_disk_before_it_takes_its_name_and_the_name_is_before_the_block_ends(
    tmp_path, monkeypatch, folder
):
    steps, names = [], {}
    open_path, sync, replace = os.open, os.fsync, Path.replace

    def opening(path, flags, **deleting):
        names[descriptor := open_path(path, flags, **deleting)] = Path(path).name
        return descriptor

    def syncing(descriptor):
        steps.append(("sync", names[descriptor]))
        sync(descriptor)

    def replacing(path, target):
        steps.append(("replace", path.name))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replacing)
    with atomic_path(tmp_path / "new") as temporary:
        temporary.mkdir() if folder else temporary.write_text("new")
        monkeypatch.setattr(os, "open", opening)
        monkeypatch.setattr(os, "fsync", syncing)
    assert steps == [("sync", temporary.name), ("replace", temporary.name), ("sync", tmp_path.name)]


@pytest.mark.parametrize("folder", [False, True])
def test_on_windows_no_folder_is_opened_and_a_file_is_open_for_writing_when_it_is_synchronised(
    tmp_path, monkeypatch, folder
):
    flags, open_path, synchronised = {}, os.open, []

    def opening(path, mode, **deleting):
        assert deleting or not Path(path).is_dir()
        flags[descriptor := open_path(path, mode, **deleting)] = mode
        return descriptor

    def syncing(descriptor):
        assert flags[descriptor] & os.O_RDWR
        synchronised.append(descriptor)

    with atomic_path(tmp_path / "new") as temporary:
        temporary.mkdir() if folder else temporary.write_text("new")
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(os, "open", opening)
        monkeypatch.setattr(os, "fsync", syncing)
    assert len(synchronised) == (0 if folder else 1)


def test_what_killed_processes_have_left_is_removed_and_nothing_else(tmp_path):
    for name in (".model.safetensors.77.tmp", "notes.tmp", ".hidden", "model.safetensors"):
        (tmp_path / name).write_text("whole or half")
    (tmp_path / ".epoch-0001.77.tmp").mkdir()
    (tmp_path / ".epoch-0001.77.tmp" / "state.json").write_text("half")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp", ".hidden", "model.safetensors"}
    remove_leftovers(tmp_path / "nowhere")
